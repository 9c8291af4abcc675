package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// addrFile in the state directory names where the server listens. The port is
// chosen by the system, so that many devices can run on one host.
const addrFile = "http.addr"

// health is the answer of /healthz. It says who answers: an address that was
// left behind may meanwhile belong to another device's server.
type health struct {
	Status  string `json:"status"` // "ok" or what is wrong
	Version string `json:"version"`
	Device  string `json:"device"`
}

type prediction struct {
	Version string  `json:"version"`
	Label   string  `json:"label"`
	Score   float64 `json:"score"` // probability of the model's second label
}

type server struct {
	env   environment
	model *Model
}

func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /predict", s.predict)
	mux.HandleFunc("GET /healthz", s.healthz)
	return mux
}

func (s *server) predict(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Features []float64 `json:"features"`
	}
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10))
	dec.DisallowUnknownFields()
	err := dec.Decode(&in)
	if err == nil {
		if _, end := dec.Token(); !errors.Is(end, io.EOF) {
			err = errors.New("data after the JSON object")
		}
	}
	var score float64
	if err == nil {
		score, err = s.model.Score(in.Features)
	}
	if err != nil {
		answer(w, http.StatusBadRequest, map[string]string{"error": err.Error()})
		return
	}
	label := s.model.Labels[0]
	if score >= s.env.threshold {
		label = s.model.Labels[1]
	}
	answer(w, http.StatusOK, prediction{Version: s.env.version, Label: label, Score: score})
}

func (s *server) healthz(w http.ResponseWriter, _ *http.Request) {
	h := health{Status: "ok", Version: s.env.version, Device: s.env.device}
	status := http.StatusOK
	if err := s.model.SelfTest(); err != nil {
		h.Status, status = err.Error(), http.StatusServiceUnavailable
	}
	answer(w, status, h)
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		fmt.Fprintln(os.Stderr, "answer:", err) // the client has gone
	}
}

// serve answers until ctx ends, then finishes open requests.
func serve(ctx context.Context, env environment, model *Model, out io.Writer) error {
	path := filepath.Join(env.stateDir, addrFile)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the address of the server before: %w", err)
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s := &server{env: env, model: model}
	srv := &http.Server{Handler: s.handler(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	addr := ln.Addr().String()
	if err := writeAtomically(path, addr+"\n"); err != nil {
		return errors.Join(err, srv.Close(), closed(<-served))
	}
	if _, err := fmt.Fprintf(out, "version %s serves model %s on http://%s\n", env.version, model.Name, addr); err != nil {
		return errors.Join(err, srv.Close(), closed(<-served))
	}
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err = errors.Join(srv.Shutdown(stop), closed(<-served))
	// Only our own: whoever came after us has already written its address.
	if data, readErr := os.ReadFile(path); readErr == nil && strings.TrimSpace(string(data)) == addr {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

func closed(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func writeAtomically(path, text string) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
