package shim

import (
	"bytes"
	"io"
	"net/http"

	"batchtask.dev/operator/internal/qcloud"
)

const (
	// shortBody is a size, in bytes, below which the bodies of nearly all calls stay: what a
	// task sends has at most 16 KiB.
	shortBody = 64 << 10
	// maxLong is how many calls with a longer one there may be at once.
	maxLong = 16
)

// receive reads the body of a call, so that r has it in memory. It comes before the call
// gets one of the places: who sends slowly, and has shown no credentials yet, takes no place
// from others. A body that is long needs a place of its own kind, until leave is called.
func (h *Handler) receive(r *http.Request) (leave func(), err error) {
	leave = func() {}
	body, readErr := io.ReadAll(io.LimitReader(r.Body, shortBody))
	if readErr == nil && len(body) == shortBody {
		if err := h.take(r.Context(), h.long, "calls with a long body"); err != nil {
			return nil, err
		}
		leave = func() { <-h.long }
		var rest []byte
		rest, readErr = io.ReadAll(io.LimitReader(r.Body, qcloud.MaxBytes+1-shortBody)) // one more is too many
		body = append(body, rest...)
	}
	var content io.Reader = bytes.NewReader(body)
	if readErr != nil {
		content = io.MultiReader(content, failing{readErr})
	}
	r.Body = readBody{content, r.Body}
	return leave, nil
}

// readBody is a body that was read.
type readBody struct {
	io.Reader
	io.Closer
}

// failing is where a body that was read has ended early.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
