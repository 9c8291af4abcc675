package update

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// How much the ledger remembers.
const (
	maxDone    = 64 // finished commands that a repeat is answered from
	maxPending = 64 // results that wait for an acknowledgement
)

// Done is a finished command.
type Done struct {
	Seq    int64           `json:"seq"`
	Result protocol.Result `json:"result"` // without its output
}

// Active is the committed release.
type Active struct {
	Release    string `json:"release"`
	Name       string `json:"name"`
	Version    string `json:"version"`
	Counter    int64  `json:"counter,omitempty"`
	Deployment string `json:"deployment,omitempty"`
	Previous   string `json:"previous,omitempty"` // version before
}

// Book is all that the machine remembers over a restart.
type Book struct {
	Op            *Record           `json:"op"`
	Queue         []Record          `json:"queue"` // the newest deployment, if it waits for the one that runs
	Done          []Done            `json:"done"`
	Pending       []protocol.Result `json:"pending"`
	Cancelled     []string          `json:"cancelled"` // command ids, some not seen yet
	Active        Active            `json:"active"`
	Kept          []string          `json:"kept"`   // committed releases, newest first
	Floors        map[string]int64  `json:"floors"` // highest min_counter committed, by bundle name
	HighestSeq    int64             `json:"highest_seq"`
	ClosedThrough int64             `json:"closed_through"`
	IssuedAt      int64             `json:"issued_at"` // latest issued_at of a verified command: the clock's floor
	Broken        string            `json:"broken"`    // why the device is INCONSISTENT; "" is sound
}

// ErrJournal is the error of a change that could not be made durable and
// therefore was not made.
var ErrJournal = errors.New("the journal could not be written")

// ledger is a Book whose every change is one journal record.
type ledger struct {
	journal Journal
	book    Book
	saved   map[string]json.RawMessage
}

func openLedger(j Journal) (*ledger, error) {
	l := &ledger{journal: j, saved: map[string]json.RawMessage{}}
	whole := map[string]json.RawMessage{}
	empty, err := fields(Book{})
	if err != nil {
		return nil, err
	}
	for key := range empty {
		var v json.RawMessage
		found, err := j.Read("update/"+key, &v)
		if err != nil {
			return nil, err
		}
		if found {
			whole[key] = v
		}
	}
	text, err := json.Marshal(whole)
	if err != nil {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	if err := json.Unmarshal(text, &l.book); err != nil {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	l.saved, err = fields(l.book)
	return l, err
}

// fields returns the book's JSON by key.
func fields(b Book) (map[string]json.RawMessage, error) {
	text, err := json.Marshal(b)
	if err != nil {
		return nil, fmt.Errorf("encode the book: %w", err)
	}
	var out map[string]json.RawMessage
	if err := json.Unmarshal(text, &out); err != nil {
		return nil, fmt.Errorf("encode the book: %w", err)
	}
	return out, nil
}

// change applies f to a copy and keeps it once the fields that differ are
// durable. On an error nothing has changed.
func (l *ledger) change(f func(*Book) error) error {
	next := l.book.clone()
	if err := f(&next); err != nil {
		return err
	}
	next.trim()
	now, err := fields(next)
	if err != nil {
		return err
	}
	write := map[string]any{}
	for key, v := range now {
		if !bytes.Equal(v, l.saved[key]) {
			write["update/"+key] = v
		}
	}
	if len(write) > 0 {
		if err := l.journal.Write(write); err != nil {
			return fmt.Errorf("%w: %w", ErrJournal, err)
		}
	}
	l.book, l.saved = next, now
	return nil
}

func (b Book) clone() Book {
	if b.Op != nil {
		op := *b.Op
		b.Op = &op
	}
	b.Queue, b.Done, b.Pending = slices.Clone(b.Queue), slices.Clone(b.Done), slices.Clone(b.Pending)
	b.Cancelled, b.Kept = slices.Clone(b.Cancelled), slices.Clone(b.Kept)
	floors := make(map[string]int64, len(b.Floors))
	for k, v := range b.Floors {
		floors[k] = v
	}
	b.Floors = floors
	return b
}

// trim forgets what is oldest. Pending results give way last of all: the
// orchestrator's own deadline covers one that is dropped here.
func (b *Book) trim() {
	b.Done = newest(b.Done, maxDone)
	b.Cancelled = newest(b.Cancelled, maxDone)
	b.Pending = newest(b.Pending, maxPending)
}

func newest[T any](s []T, n int) []T {
	if len(s) > n {
		return slices.Clone(s[len(s)-n:])
	}
	return s
}

// end files the result of a command: it is done, and pending until acknowledged.
func (b *Book) end(seq int64, r protocol.Result) {
	b.Pending = append(b.Pending, r)
	r.Output = ""
	b.Done = append(b.Done, Done{Seq: seq, Result: r})
}

// result returns the terminal result of a command: the pending one, which has
// its output, else the one on file.
func (b *Book) result(id string) (protocol.Result, bool) {
	for _, r := range b.Pending {
		if r.Command == id {
			return r, true
		}
	}
	for _, d := range b.Done {
		if d.Result.Command == id {
			return d.Result, true
		}
	}
	return protocol.Result{}, false
}

// seen raises what every verified command raises; none of it ever goes down.
func (b *Book) seen(c protocol.Command) {
	b.HighestSeq = max(b.HighestSeq, c.Seq)
	b.ClosedThrough = max(b.ClosedThrough, c.ClosedThrough)
	b.IssuedAt = max(b.IssuedAt, c.IssuedAt)
}

// maxWords bounds an error message in a result, in bytes: with MaxOutput bytes
// of output, each byte escaped, the result stays below its cap.
const maxWords = 512

func detail(err error) *protocol.ErrorDetail {
	text := words(err)
	return &protocol.ErrorDetail{Code: fleet.ErrorCode(err), Message: protocol.TrimText(text[:min(len(text), maxWords)], maxWords)}
}

// words is an error as its reader, an operator, wants it: the message of a
// fleet.Error, else the whole text. Nothing on a device is secret from the
// fleet's operators.
func words(err error) string {
	if fleet.ErrorCode(err) == fleet.CodeInternal {
		return err.Error()
	}
	return fleet.ErrorMessage(err)
}
