package bundle

import (
	"fmt"

	"aead.dev/minisign"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// VerifySignature checks a minisign signature over the exact bytes of a
// manifest against the trusted release keys and returns the key that signed.
// No signature, no trusted key, a trusted key that cannot be read and a
// signature by a key that is not trusted are each refused: there is no way for
// verification to be skipped.
func VerifySignature(manifest, signature []byte, trusted []string) (key string, err error) {
	return verify("the manifest", manifest, signature, trusted)
}

func verify(what string, message, signature []byte, trusted []string) (key string, err error) {
	refuse := func(format string, args ...any) (string, error) {
		return "", fleet.Errorf(fleet.CodeBadSignature, "%s", fmt.Sprintf(format, args...))
	}
	if len(signature) == 0 {
		return refuse("the bundle is not signed")
	}
	if len(trusted) == 0 {
		return refuse("no release key is trusted here")
	}
	if len(signature) > MaxSignatureBytes {
		return refuse("a signature of %d bytes, at most %d are allowed", len(signature), MaxSignatureBytes)
	}
	var sig minisign.Signature
	if err := sig.UnmarshalText(signature); err != nil {
		return refuse("the signature cannot be read: %v", err)
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
		if !minisign.Verify(public, message, signature) {
			return refuse("the signature of key %016x does not match %s", sig.KeyID, what)
		}
		signer = text
	}
	if signer == "" {
		return refuse("signed by the key %016x, which is not trusted", sig.KeyID)
	}
	return signer, nil
}
