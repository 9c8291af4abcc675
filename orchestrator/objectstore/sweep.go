package objectstore

import (
	"context"
	"time"

	"github.com/minio/minio-go/v7"
)

// Sweep deletes the bundles last modified before olderThan that keep does not
// claim, and aborts uploads begun before it: what a crash between upload and
// commit left behind. It returns how many it removed. olderThan must leave an
// upload in progress, or one whose row is not committed yet, its time.
func (s *Store) Sweep(ctx context.Context, olderThan time.Time, keep func(key string) bool) (int, error) {
	ctx, cancel := context.WithCancel(ctx) // ends the listing's goroutine on an early return
	defer cancel()
	removed := 0
	for o := range s.core.Client.ListObjects(ctx, s.bucket, minio.ListObjectsOptions{Prefix: keyPrefix, Recursive: true}) {
		if o.Err != nil {
			return removed, translate("list objects", o.Err)
		}
		if !o.LastModified.Before(olderThan) || keep(o.Key) {
			continue
		}
		if err := s.Delete(ctx, o.Key); err != nil {
			return removed, err
		}
		removed++
	}
	for u := range s.core.ListIncompleteUploads(ctx, s.bucket, keyPrefix, true) {
		if u.Err != nil {
			return removed, translate("list unfinished uploads", u.Err)
		}
		if !u.Initiated.Before(olderThan) {
			continue
		}
		if err := s.core.AbortMultipartUpload(ctx, s.bucket, u.Key, u.UploadID); err != nil {
			return removed, translate("abort an upload", err)
		}
		removed++
	}
	return removed, ctx.Err()
}
