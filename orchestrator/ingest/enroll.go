package ingest

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/identity"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// challengeLife is how long a device may take to answer: two round trips on a
// slow link and an RSA signature on a slow CPU.
const challengeLife = 60 * time.Second

var b64 = base64.RawURLEncoding.Strict()

func (i *Ingest) mac(label string, parts ...string) []byte {
	m := hmac.New(sha256.New, i.cfg.SealKey)
	for _, p := range append([]string{label}, parts...) {
		var n [4]byte
		binary.BigEndian.PutUint32(n[:], uint32(len(p)))
		_, _ = m.Write(n[:]) // a hash never fails
		_, _ = m.Write([]byte(p))
	}
	return m.Sum(nil)
}

// challenge seals the time, so that any replica can check it and none has to
// remember it: expiry, 16 random bytes, MAC over both, the nonce and the key.
func (i *Ingest) challenge(nonce, keyHash string, now time.Time) string {
	b := binary.BigEndian.AppendUint64(nil, uint64(now.Add(challengeLife).Unix()))
	b = append(b, make([]byte, 16)...)
	_, _ = rand.Read(b[8:]) // never fails: it aborts the program instead
	return b64.EncodeToString(append(b, i.mac("challenge", string(b), nonce, keyHash)...))
}

func (i *Ingest) checkChallenge(challenge, nonce, keyHash string, now time.Time) error {
	b, err := b64.DecodeString(challenge)
	if err != nil || len(b) != 24+sha256.Size || !hmac.Equal(b[24:], i.mac("challenge", string(b[:24]), nonce, keyHash)) {
		return fleet.Errorf(fleet.CodeUnauthorized, "the challenge is not one of this fleet for this connection and key")
	}
	if now.Unix() > int64(binary.BigEndian.Uint64(b)) {
		return fleet.Errorf(fleet.CodeUnauthorized, "the challenge is older than %s: begin again", challengeLife)
	}
	return nil
}

// receipt is the registration token of a device: derived, so that a repeat
// after a lost reply gives the same one although only its hash is stored.
func (i *Ingest) receipt(deviceID string) string {
	return "kr_" + b64.EncodeToString(i.mac("receipt", deviceID))
}

func (i *Ingest) enroll(ctx context.Context, batch []message) {
	for _, m := range batch {
		reply, outcome := i.answer(ctx, m)
		i.metrics.enrolments.WithLabelValues(outcome).Inc()
		reply.Time = time.Now().Unix()
		i.publish(ctx, i.cfg.Topics.EnrollReply(m.id), reply)
	}
}

// answer returns the reply to one request and, for the metrics, its outcome.
func (i *Ingest) answer(ctx context.Context, m message) (protocol.EnrollReply, string) {
	reply, outcome, err := i.exchange(ctx, m)
	if err != nil {
		code := fleet.ErrorCode(err)
		if code == fleet.CodeInternal || code == fleet.CodeUnavailable {
			i.cfg.Log.Error().Err(err).Msg("enrol a device")
		}
		return protocol.EnrollReply{Error: &protocol.ErrorDetail{Code: code, Message: fleet.ErrorMessage(err)}}, string(code)
	}
	return reply, outcome
}

func (i *Ingest) exchange(ctx context.Context, m message) (reply protocol.EnrollReply, outcome string, err error) {
	var req protocol.EnrollRequest
	if err := protocol.Decode(protocol.KindEnrollRequest, m.payload, &req); err != nil {
		return reply, "", err
	}
	reg := fleet.Registration{DeviceType: req.DeviceType, Serial: req.Serial, HardwareMetadata: req.HardwareMetadata}
	if err := reg.Validate(); err != nil {
		return reply, "", err
	}
	key, err := identity.ParsePublicKeyPEM([]byte(req.PublicKey))
	if err != nil {
		return reply, "", err
	}
	now := time.Now()
	if req.Challenge == "" {
		return protocol.EnrollReply{Challenge: i.challenge(m.id, key.Hash(), now)}, "challenge", nil
	}
	if err := i.checkChallenge(req.Challenge, m.id, key.Hash(), now); err != nil {
		return reply, "", err
	}
	sig, err := b64.DecodeString(req.Signature)
	if err != nil {
		return reply, "", fleet.Errorf(fleet.CodeInvalid, "signature is not base64url without padding")
	}
	if err := identity.VerifyEnroll(key, req.Challenge, m.id, sig); err != nil {
		return reply, "", err
	}
	return i.register(ctx, m.id, key, reg, req.Token)
}

// register makes the holder of key, who has proven it, a device.
func (i *Ingest) register(ctx context.Context, nonce string, key identity.PublicKey, reg fleet.Registration, token string) (reply protocol.EnrollReply, outcome string, err error) {
	hash, err := hex.DecodeString(key.Hash())
	if err != nil {
		return reply, "", fmt.Errorf("decode key hash: %w", err)
	}
	block, _ := pem.Decode(key.PEM())
	e := fleet.Enrollment{Registration: reg, PublicKeyDER: block.Bytes, KeyHash: hash, KeyType: string(key.Type()), Nonce: nonce}
	if token != "" {
		sum := sha256.Sum256([]byte(token))
		e.TokenHash = sum[:]
	}
	op, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	got, err := i.cfg.Store.Enroll(op, e, func(id string) []byte {
		sum := sha256.Sum256([]byte(i.receipt(id)))
		return sum[:]
	}, i.pending.Allow)
	if err != nil {
		return reply, "", err
	}
	status := string(got.Credential)
	reply = protocol.EnrollReply{
		DeviceID: got.DeviceID, RegistrationToken: i.receipt(got.DeviceID), Status: status, Fleet: i.cfg.Fleet, TrustMode: got.Trust.Mode,
		CommandKey: b64.EncodeToString(i.cfg.CommandKey), ReleaseKeys: got.Trust.Active(), Config: &got.Config,
	}
	if i.cfg.Certifier != nil && got.Credential == fleet.CredentialActive {
		if reply.Certificate, reply.CA, err = i.cfg.Certifier.Certify(op, got.DeviceID); err != nil {
			return protocol.EnrollReply{}, "", err // enrolling again costs nothing
		}
	}
	return reply, status, nil
}
