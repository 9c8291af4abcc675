package pgcluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
)

// account is who runs Postgres. Postgres refuses to run as root, so root uses
// postgres or, where that user does not exist, nobody; anybody else runs it as
// themselves.
type account struct {
	name   string
	uid    uint32
	gid    uint32
	groups []uint32
	// switched says that we are root and the account is another one.
	switched bool
}

func findAccount() (account, error) {
	if os.Geteuid() != 0 {
		// Postgres itself needs a name for its user id, so a missing passwd
		// entry is an error here already, with a clearer text.
		u, err := user.LookupId(strconv.Itoa(os.Geteuid()))
		if err != nil {
			return account{}, fmt.Errorf("postgres needs a user name: %w", err)
		}
		return newAccount(u, false)
	}
	for _, name := range []string{"postgres", "nobody"} {
		if u, err := user.Lookup(name); err == nil && u.Uid != "0" {
			return newAccount(u, true)
		}
	}
	return account{}, errors.New("postgres does not run as root, and neither user postgres nor nobody exists")
}

func newAccount(u *user.User, switched bool) (account, error) {
	a := account{name: u.Username, switched: switched}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return account{}, fmt.Errorf("user %s has the odd id %q", u.Username, u.Uid)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return account{}, fmt.Errorf("user %s has the odd group id %q", u.Username, u.Gid)
	}
	a.uid, a.gid = uint32(uid), uint32(gid)
	ids, err := u.GroupIds()
	if err != nil { // supplementary groups only widen what can be reached
		ids = nil
	}
	for _, id := range ids {
		if g, err := strconv.ParseUint(id, 10, 32); err == nil {
			a.groups = append(a.groups, uint32(g))
		}
	}
	return a, nil
}

// procAttr makes a child run as the account.
func (a account) procAttr() *syscall.SysProcAttr {
	if !a.switched {
		return &syscall.SysProcAttr{}
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: a.uid, Gid: a.gid, Groups: a.groups}}
}

// barrier returns the first parent folder of path that the account cannot pass
// through, or "". It reads mode bits only; the folders must exist up to path's
// own parent or it stops at the first that does not.
func (a account) barrier(path string) string {
	if !a.switched {
		return "" // our own rights: the operating system will say it
	}
	var parents []string
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		parents = append(parents, dir)
		if dir == filepath.Dir(dir) {
			break
		}
	}
	slices.Reverse(parents)
	for _, dir := range parents {
		info, err := os.Stat(dir)
		if err != nil {
			return ""
		}
		if !a.mayPass(info) {
			return dir
		}
	}
	return ""
}

func (a account) mayPass(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return true
	}
	mode := info.Mode().Perm()
	switch {
	case st.Uid == a.uid:
		return mode&0o100 != 0
	case st.Gid == a.gid || slices.Contains(a.groups, st.Gid):
		return mode&0o010 != 0
	default:
		return mode&0o001 != 0
	}
}

// own gives the whole tree to the account when it belongs to somebody else,
// which happens when the first start found only nobody and a later one found
// postgres. os.Root keeps root from being led out of the tree by a link.
func (a account) own(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("check the owner of %s: %w", dir, err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if ok && st.Uid == a.uid {
		return nil
	}
	if !a.switched {
		return fmt.Errorf("%s belongs to user id %d, but Postgres would run as %s", dir, st.Uid, a.name)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	defer root.Close()
	err = fs.WalkDir(root.FS(), ".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || path == "." {
			return err
		}
		return root.Lchown(path, int(a.uid), int(a.gid))
	})
	if err != nil {
		return fmt.Errorf("give %s to user %s: %w", dir, a.name, err)
	}
	// The folder comes last: it is what marks the work as complete.
	if err := os.Chown(dir, int(a.uid), int(a.gid)); err != nil {
		return fmt.Errorf("give %s to user %s: %w", dir, a.name, err)
	}
	return nil
}
