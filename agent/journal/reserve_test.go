package journal

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/kernexhq/kernex/pkg/durable"
)

// small mounts a disk of so many bytes; without the right to, it returns "".
func small(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Logf("no mounts here (%v); nothing to check", err)
		return ""
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}

// fill writes name until the disk is full.
func fill(t *testing.T, name string) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, block := range [][]byte{make([]byte, 64<<10), make([]byte, 512)} {
		for err = nil; err == nil; {
			_, err = f.Write(block)
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
}

func TestAFullDiskLeavesRoomForTheEndOfADeployment(t *testing.T) {
	t.Parallel()
	dir := small(t, "4m")
	if dir == "" {
		return
	}
	path, full := filepath.Join(dir, "journal"), filepath.Join(dir, "fill")
	j, err := Open(&durable.FS{}, path)
	if err != nil {
		t.Fatal(err)
	}
	value := func(n int) map[string]any {
		return map[string]any{"n": n, "text": string(bytes.Repeat([]byte("x"), 4000))}
	}
	if err := j.Write(value(0)); err != nil {
		t.Fatal(err)
	}
	fill(t, full)
	for n := 1; n <= 20; n++ { // 80 KiB
		if err := j.Write(value(n)); err != nil {
			t.Fatalf("write %d on a full disk: %v", n, err)
		}
	}
	if _, err := os.Stat(path + ".reserve"); err == nil {
		t.Error("the reserve is still there")
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	// Started again on a disk that is full to the last byte, without a reserve.
	fill(t, filepath.Join(dir, "rest"))
	if j, err = Open(&durable.FS{}, path); err != nil {
		t.Fatalf("a start on a full disk: %v", err)
	}
	defer j.Close()
	var n int
	if _, err := j.Read("n", &n); err != nil || n != 20 {
		t.Fatalf("%d, %v", n, err)
	}
	if err := j.Write(value(21)); err == nil {
		t.Log("the last page had room for one more")
	}
	if err := os.Remove(full); err != nil {
		t.Fatal(err)
	}
	if err := j.Write(value(22)); err != nil {
		t.Fatalf("with room again: %v", err)
	}
	if info, err := os.Stat(path + ".reserve"); err != nil || info.Size() != reserveBytes {
		t.Errorf("the next reserve: %v, %v", info, err)
	}
}
