// Package bundle is the format of what Kernex deploys: a tar.gz with a
// manifest that names and hashes every file. It builds bundles, checks them as
// they stream past, extracts them, and checks what was extracted.
//
// The same checks run at upload and on the device: Verify and Extract are one
// reader with and without a place to write to. docs/bundle-spec.md describes
// the format for whoever writes bundles.
//
// Errors are *fleet.Error: CodeBadBundle for a broken rule, CodeTooLarge for a
// limit, CodeChecksum for bytes unlike their digest, CodeBadSignature for a
// signature that does not verify, CodeWrongDevice for a bundle that does not
// fit. An error of the reader that the bundle comes from is passed on wrapped
// and is none of these, so that a lost connection is not taken for a bad bundle.
package bundle
