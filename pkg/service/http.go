package service

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"
)

// HTTP serves h on l, for small answers: a request has 10 s to arrive and a
// minute to be answered. Stopping waits a second for open requests.
func HTTP(name string, l net.Listener, h http.Handler) Service {
	s := &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: time.Minute,
		IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
	}
	return Service{
		Name: name,
		Run: func(context.Context) error {
			if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve %s: %w", l.Addr(), err)
			}
			return nil
		},
		Stop: func(ctx context.Context) error {
			limit, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			if s.Shutdown(limit) != nil {
				return s.Close() // a request that does not end is cut
			}
			return nil
		},
		StopTimeout: 2 * time.Second,
	}
}
