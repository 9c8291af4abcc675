package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/kernexhq/kernex/orchestrator/objectstore"
	"github.com/kernexhq/kernex/orchestrator/postgres"
)

// Migrate brings a database to this program's schema; one that is newer is left
// as it is. direct, if given, leads past a pooler.
func Migrate(ctx context.Context, dsn, direct string) error {
	if direct != "" {
		dsn = direct
	}
	db, err := postgres.Open(ctx, dsn, 4)
	if err != nil {
		return err
	}
	if pooled(dsn) {
		return errors.Join(db.MigratePooled(ctx), db.Close())
	}
	return errors.Join(db.Migrate(ctx), db.Close())
}

// pooled tells by the connection string that a pooler is between: the parameter
// is of no use without one. There, neither LISTEN nor a lock of a connection
// works.
func pooled(dsn string) bool { return strings.Contains(dsn, "binary_parameters=yes") }

// Between two attempts to reach what is not up yet, and the time of one.
const (
	awaitEvery = 2 * time.Second
	awaitOne   = 5 * time.Second
)

// Await waits until Postgres (each connection string that is not empty) and the
// object store (unless nil) answer, at most for limit, and says what it waits
// for. What waiting does not mend, such as a wrong password, ends it at once.
func Await(ctx context.Context, limit time.Duration, log zerolog.Logger, objects *objectstore.Config, dsns ...string) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for _, dsn := range dsns {
		if dsn == "" {
			continue
		}
		if err := await(ctx, limit, log, "Postgres", func(ctx context.Context) (again bool, err error) {
			db, err := postgres.Open(ctx, dsn, 1)
			if err != nil {
				return postgres.Away(err), err
			}
			return false, db.Close()
		}); err != nil {
			return err
		}
	}
	if objects == nil {
		return nil
	}
	store, err := objectstore.New(*objects)
	if err != nil {
		return err
	}
	return await(ctx, limit, log, "the object store", func(ctx context.Context) (again bool, err error) {
		return true, store.EnsureBucket(ctx) // its errors do not tell what time mends
	})
}

func await(ctx context.Context, limit time.Duration, log zerolog.Logger, what string, try func(context.Context) (again bool, err error)) error {
	begin, tick := time.Now(), time.NewTicker(awaitEvery)
	defer tick.Stop()
	for {
		one, cancel := context.WithTimeout(ctx, awaitOne)
		again, err := try(one)
		cancel()
		switch {
		case err == nil:
			return nil
		case !again:
			return err
		}
		log.Warn().Err(err).Dur("waiting_ms", time.Since(begin)).Msg("waiting for " + what)
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			return fmt.Errorf("%s did not answer for %v: %w", what, limit, err)
		case <-tick.C:
		}
	}
}

// replicaTokenLife is how long a login of this replica is good for. It is made
// anew for each connection that needs one, and never written down.
const replicaTokenLife = 24 * time.Hour

// BrokerToken makes the API token with which this replica logs in to Kernex'
// own broker; name tells an operator who that is. It is valid for 24 h.
func (o *Orchestrator) BrokerToken(ctx context.Context, name string) (string, error) {
	return o.db.ReplicaToken(ctx, name, replicaTokenLife)
}
