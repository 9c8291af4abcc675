package orchestrator

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/kernexhq/kernex/orchestrator/objectstore"
)

// bucket is the object store as the API sees it.
type bucket struct{ *objectstore.Store }

func (b bucket) NewKey() string { return objectstore.NewKey() }

func (b bucket) Put(ctx context.Context, key string, r io.Reader, size int64) error {
	_, err := b.Store.Put(ctx, key, r, size)
	return err
}

// presigner adds the object's ETag, which a device needs to resume a download.
// An object never changes under its key, so each is asked for once.
type presigner struct {
	*objectstore.Store
	mu    sync.Mutex
	etags map[string]string
}

// maxETags bounds the memory of presigner: more bundles than are deployed at
// once; beyond it the store is asked again.
const maxETags = 4096

func (p *presigner) Presign(ctx context.Context, key string, ttl time.Duration) (url string, expires time.Time, etag string, err error) {
	p.mu.Lock()
	etag, ok := p.etags[key]
	p.mu.Unlock()
	if !ok {
		info, err := p.Stat(ctx, key)
		if err != nil {
			return "", time.Time{}, "", err
		}
		etag = info.ETag
		p.mu.Lock()
		if len(p.etags) >= maxETags {
			clear(p.etags)
		}
		p.etags[key] = etag
		p.mu.Unlock()
	}
	url, expires, err = p.Store.Presign(ctx, key, ttl)
	return url, expires, etag, err
}

// Objects that no row names are left over from an upload that a crash ended.
// A day is far more than the longest upload takes.
const (
	sweepEvery = 6 * time.Hour
	sweepAge   = 24 * time.Hour
)

func (o *Orchestrator) sweepObjects(ctx context.Context, objects *objectstore.Store) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		before := time.Now().Add(-sweepAge) // taken first: a key that is stored later is younger
		keys, err := o.db.BundleKeys(ctx)
		if err != nil {
			o.own.Warn().Err(err).Msg("list bundles to sweep the object store")
			continue
		}
		known := make(map[string]bool, len(keys))
		for _, k := range keys {
			known[k] = true
		}
		n, err := objects.Sweep(ctx, before, func(key string) bool { return known[key] })
		if err != nil && ctx.Err() == nil {
			o.own.Warn().Err(err).Msg("sweep the object store")
		}
		if n > 0 {
			o.log.Info().Int("objects", n).Msg("removed what unfinished uploads left")
		}
	}
}
