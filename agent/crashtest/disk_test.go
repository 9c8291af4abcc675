package crashtest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"

	"github.com/kernexhq/kernex/pkg/durable"
)

// node is a file, a link or a directory as the page cache shows it and as the
// disk has it. What differs is at the mercy of a power cut.
type node struct {
	mode    fs.FileMode
	target  string           // of a link
	data    []byte           // of a file, in the page cache
	synced  []byte           // of a file, on the disk
	entries map[string]*node // of a directory, in the page cache
	durable map[string]*node // of a directory, on the disk
}

func newDir() *node {
	return &node{mode: fs.ModeDir | 0o700, entries: map[string]*node{}, durable: map[string]*node{}}
}

// load reads a tree, all of which is durable.
func load(path string, skip func(rel string) bool) (*node, error) { return loadAt(path, "", skip) }

func loadAt(root, rel string, skip func(string) bool) (*node, error) {
	path := filepath.Join(root, rel)
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	n := &node{mode: info.Mode()}
	switch {
	case info.IsDir():
		n.entries, n.durable = map[string]*node{}, map[string]*node{}
		list, err := os.ReadDir(path)
		if err != nil {
			return nil, err
		}
		for _, e := range list {
			if at := filepath.Join(rel, e.Name()); !skip(at) {
				child, err := loadAt(root, at, skip)
				if err != nil {
					return nil, err
				}
				n.entries[e.Name()], n.durable[e.Name()] = child, child
			}
		}
	case info.Mode()&fs.ModeSymlink != 0:
		n.target, err = os.Readlink(path)
	default:
		n.data, err = os.ReadFile(path)
		n.synced = n.data
	}
	return n, err
}

// entry is a call of the durable seam that was done, with what the world had
// seen by then.
type entry struct {
	durable.Call
	empty    bool        // of an open: the file has nothing in it
	perm     fs.FileMode // of what was made or changed; it is as durable as the name
	did      []byte
	mark     []event
	tampered bool // of a sync: it did not happen
}

// apply does to the model what the call did to the page cache and the disk.
func (n *node) apply(root string, e entry) error {
	at := func(path string) (dir *node, name string, err error) {
		rel, err := filepath.Rel(root, path)
		if err != nil || strings.HasPrefix(rel, "..") {
			return nil, "", fmt.Errorf("%s %s of %s, outside of %s", e.Op, e.Kind, path, root)
		}
		dir = n
		parts := strings.Split(rel, "/")
		for _, p := range parts[:len(parts)-1] {
			if dir = dir.entries[p]; dir == nil || dir.entries == nil {
				return nil, "", fmt.Errorf("%s %s of %s: no directory %s", e.Op, e.Kind, path, p)
			}
		}
		return dir, parts[len(parts)-1], nil
	}
	if e.Kind == durable.SyncDir && len(e.Path) < len(root) {
		return nil // above the state directory
	}
	if e.Path == root {
		if e.Kind == durable.Chmod {
			n.mode = e.perm
		}
		if e.Kind == durable.SyncDir && !e.tampered {
			n.durable = clone(n.entries)
		}
		return nil
	}
	dir, name, err := at(e.Path)
	if err != nil {
		return err
	}
	it := dir.entries[name]
	switch e.Kind {
	case durable.Open:
		if it == nil {
			it = &node{mode: 0o600}
			dir.entries[name] = it
		}
		if e.empty {
			it.data = nil
		}
		it.mode = e.perm
	case durable.Write:
		it.data = append(it.data[:len(it.data):len(it.data)], e.Data...)
	case durable.Truncate:
		it.data = it.data[:min(e.Size, int64(len(it.data)))]
	case durable.Sync:
		if !e.tampered {
			it.synced = it.data
		}
	case durable.Rename:
		to, toName, err := at(e.To)
		if err != nil {
			return err
		}
		delete(dir.entries, name)
		to.entries[toName] = it
	case durable.Symlink:
		dir.entries[name] = &node{mode: fs.ModeSymlink | 0o777, target: e.To}
	case durable.Remove:
		it.clear()
		delete(dir.entries, name)
	case durable.Mkdir:
		if it == nil {
			it = newDir()
			dir.entries[name] = it
		}
		it.mode = e.perm
	case durable.SyncDir:
		if !e.tampered {
			it.durable = clone(it.entries)
		}
	case durable.Chmod:
		it.mode = e.perm
	case durable.Close:
	}
	return nil
}

// clear empties a removed tree; on the disk it is all still there.
func (n *node) clear() {
	if n == nil {
		return
	}
	for name, child := range n.entries {
		child.clear()
		delete(n.entries, name)
	}
}

func clone(m map[string]*node) map[string]*node {
	out := make(map[string]*node, len(m))
	for k, v := range m {
		out[k] = v
	}
	return out
}

// image is the disk after a power cut, all of it durable: what was fsynced, and
// of the rest what random chooses; nil chooses nothing.
func (n *node) image(random *rand.Rand) *node {
	out := &node{mode: n.mode, target: n.target}
	if n.entries == nil {
		out.data = n.synced
		if random != nil && !bytes.Equal(n.data, n.synced) {
			switch random.IntN(3) {
			case 0:
				out.data = n.data
			case 1: // a torn write
				if kept := len(n.synced); len(n.data) > kept && bytes.HasPrefix(n.data, n.synced) {
					out.data = n.data[:kept+random.IntN(len(n.data)-kept)]
				} else if len(n.data) > 0 {
					out.data = n.data[:random.IntN(len(n.data))]
				}
			}
		}
		out.synced = out.data
		return out
	}
	out.entries = map[string]*node{}
	for _, name := range names(n.durable, n.entries) {
		chosen := n.durable[name]
		if now := n.entries[name]; now != chosen && random != nil && random.IntN(2) == 0 {
			chosen = now
		}
		if chosen != nil {
			out.entries[name] = chosen.image(random)
		}
	}
	out.durable = clone(out.entries)
	return out
}

// killed is the disk after the process has died: the page cache, whole.
func (n *node) killed() *node {
	out := &node{mode: n.mode, target: n.target, data: n.data, synced: n.data}
	if n.entries != nil {
		out.entries = map[string]*node{}
		for name, child := range n.entries {
			out.entries[name] = child.killed()
		}
		out.durable = clone(out.entries)
	}
	return out
}

func names(maps ...map[string]*node) []string {
	seen := map[string]bool{}
	var out []string
	for _, m := range maps {
		for name := range m {
			if !seen[name] {
				seen[name] = true
				out = append(out, name)
			}
		}
	}
	sort.Strings(out)
	return out
}

// write makes the tree real.
func (n *node) write(path string) error {
	switch {
	case n.entries != nil:
		if err := os.Mkdir(path, 0o700); err != nil {
			return err
		}
		for name, child := range n.entries {
			if err := child.write(filepath.Join(path, name)); err != nil {
				return err
			}
		}
	case n.mode&fs.ModeSymlink != 0:
		return os.Symlink(n.target, path)
	default:
		if err := os.WriteFile(path, n.data, 0o600); err != nil {
			return err
		}
	}
	return os.Chmod(path, n.mode.Perm())
}

// same compares what the page cache shows with another tree.
func (n *node) same(path string, o *node) error {
	switch {
	case o == nil:
		return fmt.Errorf("%s is missing", path)
	case (n.entries == nil) != (o.entries == nil) || n.mode.Perm() != o.mode.Perm() || n.target != o.target || !bytes.Equal(n.data, o.data):
		return fmt.Errorf("%s differs: %v and %v, %d and %d bytes, links %q and %q", path, n.mode, o.mode, len(n.data), len(o.data), n.target, o.target)
	}
	var err error
	for _, name := range names(n.entries, o.entries) {
		at := filepath.Join(path, name)
		switch a := n.entries[name]; {
		case transient(at):
		case a == nil:
			err = errors.Join(err, fmt.Errorf("%s was not made through the seam", at))
		default:
			err = errors.Join(err, a.same(at, o.entries[name]))
		}
	}
	return err
}

// recorder is a seam that remembers what was done.
type recorder struct {
	seen func(*entry) // adds what the world has seen

	mu      sync.Mutex
	entries []entry
}

func (r *recorder) hook(c durable.Call, before bool) error {
	if before {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	e := entry{Call: c}
	e.Data = bytes.Clone(c.Data)
	if c.Kind == durable.Open {
		info, err := os.Lstat(c.Path)
		e.empty = err == nil && info.Size() == 0
	}
	if c.Kind == durable.Chmod || c.Kind == durable.Mkdir || c.Kind == durable.Open {
		if info, err := os.Lstat(c.Path); err == nil {
			e.perm = info.Mode()
		}
	}
	r.seen(&e)
	r.entries = append(r.entries, e)
	return nil
}
