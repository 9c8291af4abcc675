// Package client is the typed Go client of the admin API. Every method takes a
// context, is tried again where that is safe (see Client), and returns errors
// as *fleet.Error with the API's own code and words.
package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
)

const (
	base           = "/api/v1"
	attempts       = 5                // of one call; with the waits between them about 3 s in all
	requestTimeout = 30 * time.Second // of one attempt; an upload and the event stream have none
	maxAnswer      = 64 << 20         // bytes of JSON; a page of 1,000 devices with full metadata is about 20 MiB
)

// Client calls one admin API. It is safe for concurrent use.
//
// A call is tried up to 5 times, with a growing random wait, when the server
// cannot be reached, drops the connection, or answers 429 or 503; Retry-After
// is obeyed up to 10 s. That holds for GET, for POST (each carries an
// Idempotency-Key that stays the same over its attempts, so a repeat whose
// first answer was lost does nothing twice), for PUT and PATCH (absolute
// values) without If-Match. Others are tried again only while no connection
// could be made at all.
type Client struct {
	url   *url.URL
	token string
	http  *http.Client
}

// New returns a client for the API at rawURL (http or https; a path in front of
// /api/v1 is kept) with a bearer token; the token may be empty.
func New(rawURL, token string) (*Client, error) {
	u, err := url.Parse(strings.TrimRight(rawURL, "/"))
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fleet.Errorf(fleet.CodeInvalid, "URL %q: want http://HOST:PORT or https://HOST", rawURL)
	}
	if strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, fleet.Errorf(fleet.CodeInvalid, "the token holds a space or a character that no token has")
	}
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.ExpectContinueTimeout = time.Second // a refused upload costs no gigabyte
	return &Client{url: u, token: token, http: &http.Client{Transport: t}}, nil
}

// URL returns the address that the client talks to.
func (c *Client) URL() string { return c.url.String() }

// Close drops idle connections; calls that run go on.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// maxPage is the largest page that the API gives.
const maxPage = 1000

// list reads pages from path until limit items are there; 0 is all of them.
// NextCursor tells whether the server has more.
func list[T any](ctx context.Context, c *Client, path string, query url.Values, limit int) (fleet.List[T], error) {
	all := fleet.List[T]{Items: []T{}}
	for {
		q := url.Values{}
		for k, v := range query {
			q[k] = v
		}
		size := maxPage
		if limit > 0 {
			size = min(size, limit-len(all.Items))
		}
		q.Set("limit", strconv.Itoa(size))
		if all.NextCursor != "" {
			q.Set("cursor", all.NextCursor)
		}
		var p fleet.List[T]
		if err := c.call(ctx, request{method: http.MethodGet, path: path, query: q}, &p); err != nil {
			return all, err
		}
		all.Items, all.Total = append(all.Items, p.Items...), p.Total
		if p.NextCursor == "" || p.NextCursor == all.NextCursor || limit > 0 && len(all.Items) >= limit {
			all.NextCursor = p.NextCursor
			return all, nil
		}
		all.NextCursor = p.NextCursor
	}
}

// request is one call before it is sent; body is JSON unless upload is set.
type request struct {
	method, path string
	query        url.Values
	body         any
	ifMatch      string
	upload       *upload
}

func (c *Client) get(ctx context.Context, path string, into any) error {
	return c.call(ctx, request{method: http.MethodGet, path: path}, into)
}

func (c *Client) post(ctx context.Context, path string, body, into any) error {
	return c.call(ctx, request{method: http.MethodPost, path: path, body: body}, into)
}

// call sends r until it is answered and decodes the answer into into, unless
// that is nil.
func (c *Client) call(ctx context.Context, r request, into any) error {
	if err := checkPath(r.path); err != nil {
		return err
	}
	var body []byte
	if r.body != nil {
		b, err := json.Marshal(r.body)
		if err != nil {
			return fmt.Errorf("encode the request: %w", err)
		}
		body = b
	}
	key := ""
	if r.method == http.MethodPost {
		key = rand.Text()
	}
	var err error
	for try := range attempts {
		var again retry
		if again, err = c.attempt(ctx, r, body, key, into); again.no {
			return err
		}
		if try == attempts-1 || !again.wait(ctx, try) {
			break
		}
	}
	return err
}

// attempt sends r once.
func (c *Client) attempt(ctx context.Context, r request, body []byte, key string, into any) (retry, error) {
	if r.upload == nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, requestTimeout)
		defer cancel()
	}
	req, err := c.newRequest(ctx, r, body, key)
	if err != nil {
		return retry{no: true}, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return retry{no: !r.repeatable() && !notSent(err)}, c.unreachable(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		return retryStatus(r, resp), c.problem(resp)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return retry{no: !r.repeatable()}, c.unreachable(ctx, err)
	case len(b) > maxAnswer:
		return retry{no: true}, fleet.Errorf(fleet.CodeTooLarge, "%s answered more than %d MiB to %s %s", c.url, maxAnswer>>20, r.method, r.path)
	case into == nil || resp.StatusCode == http.StatusNoContent:
		return retry{no: true}, nil
	}
	if err := json.Unmarshal(b, into); err != nil {
		return retry{no: true}, fleet.Wrap(fleet.CodeInternal, err,
			fmt.Sprintf("%s answered %s %s with something that is not the admin API's JSON: is this the address of Kernex?", c.url, r.method, r.path))
	}
	return retry{no: true}, nil
}

func (c *Client) newRequest(ctx context.Context, r request, body []byte, key string) (*http.Request, error) {
	to := c.url.String() + base + r.path
	if len(r.query) > 0 {
		to += "?" + r.query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, r.method, to, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("make the request: %w", err)
	}
	switch {
	case r.upload != nil:
		r.upload.attach(req)
	case body != nil:
		req.Header.Set("Content-Type", "application/json")
	default:
		req.Body, req.GetBody, req.ContentLength = nil, nil, 0
	}
	c.authorize(req)
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	if r.ifMatch != "" {
		req.Header.Set("If-Match", r.ifMatch)
	}
	return req, nil
}

func (c *Client) authorize(req *http.Request) {
	req.Header.Set("User-Agent", "kernex-client")
	req.Header.Set("Accept", "application/json, application/problem+json")
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
}

// path joins a path's parts, each escaped as one segment.
func path(parts ...string) string {
	var b strings.Builder
	for _, p := range parts {
		b.WriteString("/" + url.PathEscape(p))
	}
	return b.String()
}

// checkPath refuses what a server would clean away and so answer for another
// path: an empty id, "." and "..".
func checkPath(p string) error {
	for seg := range strings.SplitSeq(p[1:], "/") {
		if strings.Trim(seg, ".") == "" {
			return fleet.Errorf(fleet.CodeInvalid, "%q is no id (in %s)", seg, p)
		}
	}
	return nil
}
