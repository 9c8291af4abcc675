package bundle

import (
	"fmt"

	"aead.dev/minisign"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// CheckReleaseKey reports why s is no minisign public key in its one-line form
// ("RW..." as in a .pub file's second line).
func CheckReleaseKey(s string) error {
	var key minisign.PublicKey
	if err := key.UnmarshalText([]byte(s)); err != nil {
		return fleet.Errorf(fleet.CodeInvalid, "release key %q: %v", s, err)
	}
	return nil
}

// VerifySignature checks a minisign signature over the exact bytes of a
// manifest against the trusted release keys and returns the key that signed.
// No signature, no trusted key, a trusted key that cannot be read and a
// signature by a key that is not trusted are each refused: there is no way for
// verification to be skipped.
func VerifySignature(manifest, signature []byte, trusted []string) (key string, err error) {
	refuse := func(format string, args ...any) (string, error) {
		return "", fleet.Errorf(fleet.CodeBadSignature, "%s", fmt.Sprintf(format, args...))
	}
	if len(signature) == 0 {
		return refuse("the bundle is not signed")
	}
	if len(trusted) == 0 {
		return refuse("no release key is trusted here")
	}
	var sig minisign.Signature
	if err := sig.UnmarshalText(signature); err != nil {
		return refuse("%s cannot be read: %v", SignatureName, err)
	}
	signer := ""
	for _, text := range trusted {
		var public minisign.PublicKey
		if err := public.UnmarshalText([]byte(text)); err != nil {
			return refuse("trusted release key %q cannot be read: %v", text, err)
		}
		if public.ID() != sig.KeyID || signer != "" {
			continue // the id is a hint; the check is below
		}
		if !minisign.Verify(public, manifest, signature) {
			return refuse("the signature of key %016X does not match the manifest", sig.KeyID)
		}
		signer = text
	}
	if signer == "" {
		return refuse("signed by the key %016X, which is not trusted", sig.KeyID)
	}
	return signer, nil
}
