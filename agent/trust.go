package agent

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/kernexhq/kernex/pkg/buildinfo"
	"github.com/kernexhq/kernex/pkg/bundle"
	"github.com/kernexhq/kernex/pkg/fleet"
)

// trust decides which bundles may be installed.
type trust struct {
	cache      *cache
	deviceType string
}

// Admit implements update.Trust: in every trust mode but open only a bundle
// signed by a pinned release key, and always only one that fits this device.
func (t trust) Admit(info *bundle.Info) error {
	e := t.cache.get()
	if e.trustMode() == trustRequired {
		if _, err := bundle.VerifySignature(info.ManifestBytes, info.Signature, e.ReleaseKeys); err != nil {
			return err
		}
		if info.Manifest.Counter == 0 {
			return fleet.Errorf(fleet.CodeBadSignature, "the signed release has no counter: an old one could be played back")
		}
	}
	return info.Manifest.Fits(bundle.Device{Arch: runtime.GOARCH, Type: t.deviceType, AgentVersion: buildinfo.Version})
}

// buildTime is when this program was committed: no clock that is right shows
// an earlier time.
var buildTime = func() time.Time {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.time" {
				t, _ := time.Parse(time.RFC3339, s.Value) // the zero time is no floor
				return t
			}
		}
	}
	return time.Time{}
}()

// tlsConfig trusts the CAs of file, or the system's. Certificates are checked
// at the time that now says: a device without a clock would find every one of
// them not yet valid.
func tlsConfig(file string, now func() time.Time) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, Time: now}
	if file == "" {
		return conf, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read --ca: %w", err)
	}
	conf.RootCAs = x509.NewCertPool()
	if !conf.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("--ca %s holds no certificate in PEM", file)
	}
	return conf, nil
}
