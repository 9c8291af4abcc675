package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"

	"github.com/kernexhq/kernex/orchestrator"
	"github.com/kernexhq/kernex/pkg/config"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/secretfile"
	"github.com/kernexhq/kernex/pkg/tlsfile"
)

// internalFiles reads what the internal listener needs: the secret, and the
// certificate if there is one.
func (r *replica) internalFiles() (secret string, guard *tlsfile.Pair, err error) {
	if r.Internal == "" {
		return "", nil, nil
	}
	if secret, err = secretfile.Read(r.SecretFile); err != nil {
		return "", nil, err
	}
	if len(secret) < orchestrator.MinSharedSecret {
		return "", nil, fleet.Errorf(fleet.CodeInvalid, "--secret-file %s holds %d bytes, it must hold at least %d; make one with: openssl rand -base64 32", r.SecretFile, len(secret), orchestrator.MinSharedSecret)
	}
	if r.InternalCert == "" {
		if !config.Loopback(r.Internal) {
			r.log.Warn().Str("internal", r.Internal).Msg("devices' logins cross the network unencrypted: give --internal-cert, or use a network that is trusted")
		}
		return secret, nil, nil
	}
	if guard, err = tlsfile.Load(r.InternalCert, r.InternalKey); err != nil {
		return "", nil, err
	}
	r.files = append(r.files, watched{"internal certificate", guard})
	return secret, guard, nil
}

// listenInternal opens the listener for brokers; nil without one.
func (r *replica) listenInternal(ctx context.Context, guard *tlsfile.Pair) (net.Listener, error) {
	if r.Internal == "" {
		return nil, nil
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", r.Internal)
	if err != nil {
		return nil, fmt.Errorf("listen for --internal: %w", err)
	}
	r.log.Info().Stringer("addr", l.Addr()).Bool("tls", guard != nil).Msg("answering brokers")
	if guard != nil {
		l = tls.NewListener(l, guard.Server())
	}
	return l, nil
}
