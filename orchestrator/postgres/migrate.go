package postgres

import (
	"context"
	"fmt"
	"io/fs"
	"time"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"github.com/kernexhq/kernex/schema"
)

// lockTries is how many seconds a replica waits for another one to migrate.
const lockTries = 300

// Migrate brings the database to this program's schema. Several replicas may
// call it at once: an advisory lock lets one work and the others find it done.
// A database that is already newer is left as it is.
func (d *DB) Migrate(ctx context.Context) error {
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, lockTries))
	if err != nil {
		return fmt.Errorf("make migration lock: %w", err)
	}
	return d.migrate(ctx, goose.WithSessionLocker(locker))
}

// MigratePooled is Migrate through a pooler that gives each transaction another
// server connection, where an advisory lock would be taken on one and released
// on another: a row is the lock. One that a crash left is free after 30 s.
func (d *DB) MigratePooled(ctx context.Context) error {
	locker, err := lock.NewPostgresTableLocker(lock.WithTableLockTimeout(time.Second, lockTries))
	if err != nil {
		return fmt.Errorf("make migration lock: %w", err)
	}
	return d.migrate(ctx, goose.WithLocker(locker))
}

func (d *DB) migrate(ctx context.Context, turns goose.ProviderOption) error {
	dir, err := fs.Sub(schema.Migrations, "migrations")
	if err != nil {
		return fmt.Errorf("read migrations: %w", err)
	}
	p, err := goose.NewProvider(goose.DialectPostgres, d.db.DB, dir, turns)
	if err != nil {
		return fmt.Errorf("read migrations: %w", err)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	return nil
}
