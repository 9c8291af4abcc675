// Package identity holds what proves that a device is the device: its key
// pair, the short-lived token it signs for each connection, and the proof of
// possession it gives once, when it enrols.
//
// The algorithm always follows from the key that is stored for the device and
// never from what a message claims, so "alg" in a token can only agree or be
// refused.
package identity
