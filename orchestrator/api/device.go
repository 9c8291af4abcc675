package api

import (
	"context"
	"encoding/hex"
	"encoding/pem"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/identity"
)

type devicesIn struct {
	PageParams
	Selector      string `query:"selector" maxLength:"4096" doc:"Labels, as in site=berlin,ring!=canary"`
	Status        string `query:"status" enum:"online,offline,error,pending,quarantined,revoked"`
	BundleVersion string `query:"bundle_version" maxLength:"127" doc:"Version that the device reports to run"`
	Q             string `query:"q" maxLength:"127" doc:"Part of an id, serial, device type or description"`
}

type registerIn struct {
	Body fleet.Registration
}

type patchDeviceIn struct {
	IDParam
	Body fleet.DevicePatch
}

type heartbeatsIn struct {
	IDParam
	From  time.Time `query:"from" doc:"Oldest sample"`
	To    time.Time `query:"to" doc:"Samples before this"`
	Step  int       `query:"step" minimum:"0" maximum:"604800" doc:"Seconds to average over; 0 gives the samples themselves"`
	Limit int       `query:"limit" minimum:"1" maximum:"1000" default:"100"`
}

type historyIn struct {
	IDParam
	PageParams
}

func (a *API) registerDevices() {
	register(a, fleet.RoleViewer, huma.Operation{OperationID: "list-devices", Method: http.MethodGet, Path: "/devices", Summary: "List devices", Tags: []string{"devices"}}, a.listDevices)
	register(a, fleet.RoleAdmin, huma.Operation{OperationID: "register-device", Method: http.MethodPost, Path: "/devices", Summary: "Pre-register a device by its public key", Tags: []string{"devices"},
		DefaultStatus: http.StatusCreated, Description: "The same key again answers 200 and the same device."}, a.registerDevice)
	register(a, fleet.RoleViewer, huma.Operation{OperationID: "get-device", Method: http.MethodGet, Path: "/devices/{id}", Summary: "Read one device", Tags: []string{"devices"}}, a.getDevice)
	register(a, fleet.RoleOperator, huma.Operation{OperationID: "update-device", Method: http.MethodPatch, Path: "/devices/{id}", Summary: "Change labels and description", Tags: []string{"devices"}}, a.updateDevice)
	register(a, fleet.RoleAdmin, huma.Operation{OperationID: "delete-device", Method: http.MethodDelete, Path: "/devices/{id}", Summary: "Forget a device and its history", Tags: []string{"devices"}, DefaultStatus: http.StatusNoContent}, a.deleteDevice)
	register(a, fleet.RoleViewer, huma.Operation{OperationID: "list-heartbeats", Method: http.MethodGet, Path: "/devices/{id}/heartbeats", Summary: "Samples, newest first", Tags: []string{"devices"}}, a.heartbeats)
	register(a, fleet.RoleViewer, huma.Operation{OperationID: "bundle-history", Method: http.MethodGet, Path: "/devices/{id}/bundle-history", Summary: "What was deployed, newest first", Tags: []string{"devices"}}, a.history)
	for _, m := range []struct {
		verb, does string
		from, to   fleet.Credential
	}{
		{"approve", "Let a pending device receive commands", fleet.CredentialPending, fleet.CredentialActive},
		{"release", "End a quarantine", fleet.CredentialQuarantined, fleet.CredentialActive},
		{"quarantine", "Let a device connect but send it no commands", fleet.CredentialActive, fleet.CredentialQuarantined},
		{"revoke", "Refuse a device's key for ever", "", fleet.CredentialRevoked},
	} {
		register(a, fleet.RoleAdmin, huma.Operation{OperationID: m.verb + "-device", Method: http.MethodPost, Path: "/devices/{id}/" + m.verb, Summary: m.does, Tags: []string{"devices"}},
			func(ctx context.Context, c caller, in *IDParam) (*out[fleet.Device], error) {
				d, err := a.cfg.Store.SetCredential(ctx, in.ID, m.from, m.to, c.scope, c.actor)
				return &out[fleet.Device]{Body: d}, err
			})
	}
}

func (a *API) listDevices(ctx context.Context, c caller, in *devicesIn) (*out[fleet.List[fleet.Device]], error) {
	sel, err := fleet.ParseSelector(in.Selector)
	if err != nil {
		return nil, err
	}
	l, err := a.cfg.Store.Devices(ctx, fleet.DeviceFilter{Scope: c.scope, Selector: sel, Status: in.Status, BundleVersion: in.BundleVersion, Query: in.Q}, in.page())
	return &out[fleet.List[fleet.Device]]{Body: l}, err
}

func (a *API) registerDevice(ctx context.Context, c caller, in *registerIn) (*outStatus[fleet.Device], error) {
	if err := in.Body.Validate(); err != nil {
		return nil, err
	}
	key, err := identity.ParsePublicKeyPEM([]byte(in.Body.PublicKey))
	if err != nil {
		// Whatever is wrong with the key, the request is: 415 is for bodies.
		return nil, fleet.Errorf(fleet.CodeInvalid, "public_key: %s", fleet.ErrorMessage(err))
	}
	block, _ := pem.Decode(key.PEM())
	hash, err := hex.DecodeString(key.Hash())
	if err != nil {
		return nil, fleet.Errorf(fleet.CodeInternal, "hash of the key: %v", err)
	}
	d, created, err := a.cfg.Store.RegisterDevice(ctx, in.Body, block.Bytes, hash, string(key.Type()), c.scope, c.actor)
	if err != nil {
		return nil, err
	}
	o := &outStatus[fleet.Device]{Status: http.StatusOK, Body: d}
	if created {
		o.Status = http.StatusCreated
	}
	return o, nil
}

func (a *API) getDevice(ctx context.Context, c caller, in *IDParam) (*out[fleet.Device], error) {
	d, err := a.cfg.Store.Device(ctx, in.ID, c.scope)
	return &out[fleet.Device]{Body: d}, err
}

func (a *API) updateDevice(ctx context.Context, c caller, in *patchDeviceIn) (*out[fleet.Device], error) {
	if err := in.Body.Validate(); err != nil {
		return nil, err
	}
	d, err := a.cfg.Store.UpdateDevice(ctx, in.ID, in.Body, c.scope, c.actor)
	return &out[fleet.Device]{Body: d}, err
}

func (a *API) deleteDevice(ctx context.Context, c caller, in *IDParam) (*none, error) {
	return nil, a.cfg.Store.DeleteDevice(ctx, in.ID, c.scope, c.actor)
}

func (a *API) heartbeats(ctx context.Context, c caller, in *heartbeatsIn) (*out[fleet.List[fleet.Heartbeat]], error) {
	f := fleet.HeartbeatFilter{From: in.From, To: in.To, Step: time.Duration(in.Step) * time.Second, Limit: in.Limit}
	h, err := a.cfg.Store.Heartbeats(ctx, in.ID, c.scope, f)
	return &out[fleet.List[fleet.Heartbeat]]{Body: fleet.List[fleet.Heartbeat]{Items: h, Total: len(h)}}, err
}

func (a *API) history(ctx context.Context, c caller, in *historyIn) (*out[fleet.List[fleet.HistoryEntry]], error) {
	l, err := a.cfg.Store.History(ctx, in.ID, c.scope, in.page())
	return &out[fleet.List[fleet.HistoryEntry]]{Body: l}, err
}
