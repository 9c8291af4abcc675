package pgcluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/kernexhq/kernex/pkg/child"
)

// superuser is the one role of a private cluster.
const superuser = "postgres"

// initialise makes a cluster in dir unless there is one. initdb runs in a
// sibling folder that is renamed when complete, so a kill in the middle leaves
// nothing that looks like a cluster.
func initialise(ctx context.Context, in install, who account, dir string, fast bool) error {
	if initialised(dir) {
		return nil
	}
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return fmt.Errorf("%s is not empty and not a Postgres data folder", dir)
	}
	tmp := dir + ".init"
	if err := os.RemoveAll(tmp); err != nil {
		return fmt.Errorf("remove an unfinished cluster: %w", err)
	}
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return fmt.Errorf("make the data folder: %w", err)
	}
	if err := who.own(tmp); err != nil {
		return err
	}
	args := []string{"--pgdata", tmp, "--username", superuser, "--encoding", "UTF8", "--locale", "C",
		"--auth-local", "peer", "--auth-host", "reject"}
	if fast {
		args = append(args, "--no-sync")
	}
	cmd := exec.Command(in.path("initdb"), args...)
	cmd.Dir = "/" // our working folder may be closed to the account
	cmd.Env = environment()
	cmd.SysProcAttr = who.procAttr()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	p, err := child.Start(cmd, syscall.SIGKILL)
	if err != nil {
		return err
	}
	select {
	case <-p.Done():
	case <-ctx.Done():
		p.Stop()
		return fmt.Errorf("initdb: %w", ctx.Err())
	}
	if err := p.Err(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, bytes.TrimSpace(out.Bytes()))
	}
	if err := os.Rename(tmp, dir); err != nil {
		return fmt.Errorf("put the new cluster in place: %w", err)
	}
	if fast {
		return nil
	}
	return syncDir(filepath.Dir(dir))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}

// environment is what Postgres programs get: PG* variables of ours would
// silently change their settings.
func environment() []string { return []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "TZ=UTC"} }

// writeAccess writes pg_hba.conf and pg_ident.conf: over the socket, the kernel
// tells Postgres who calls (peer), and only root and the account that runs it
// are let in. There is no password to keep or to leak, and the check still
// holds if somebody opens the socket folder.
func writeAccess(who account, dir string) error {
	hba := "# written at every start\nlocal all all peer map=kernex\n"
	ident := "# written at every start\nkernex root " + superuser + "\n"
	if who.name != "root" {
		ident += fmt.Sprintf("kernex %q %s\n", who.name, superuser)
	}
	for name, content := range map[string]string{"pg_hba.conf": hba, "pg_ident.conf": ident} {
		if err := replace(who, filepath.Join(dir, name), content); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return nil
}

// replace puts a file into a folder that belongs to another user. O_EXCL and
// rename never follow a link that this user may have planted.
func replace(who account, path, content string) error {
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	if err == nil && who.switched {
		err = f.Chown(int(who.uid), int(who.gid))
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
