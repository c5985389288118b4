package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// maxReview is the largest review that is read, in bytes: a task has 40 KB, and
	// annotations may have 256 KB more, which the review has twice if kubectl applied it.
	maxReview = 1 << 20
	// maxAtOnce is how many reviews of a namespace are worked on at once, and maxWaiting
	// how many more may wait for that.
	maxAtOnce, maxWaiting = 16, 256
	// readPatience bounds the reading of a review.
	readPatience = 3 * time.Second
	// defaultTimeout is how long the API server waits that does not say it, maxTimeout the
	// longest that it can be told to wait (timeoutSeconds of a webhook configuration).
	defaultTimeout, maxTimeout = 10 * time.Second, 30 * time.Second
)

// guard bounds what reviews may take: whoever reaches the port may send any number of
// them. One namespace's do not hold up another's.
type guard struct {
	http.Handler

	mu         sync.Mutex
	namespaces map[string]*lane // of which there are reviews now
}

// lane is the places of a namespace.
type lane struct {
	places chan struct{}
	users  int
}

func newGuard(handler http.Handler) *guard {
	return &guard{Handler: handler, namespaces: map[string]*lane{}}
}

// ServeHTTP implements [http.Handler].
func (g *guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// The error says that a server cannot do it, as that of a test.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(readPatience)) //nolint:forbidigo // a deadline of the network
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxReview))
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		http.Error(w, fmt.Sprintf("the review is larger than %d bytes", maxReview), http.StatusRequestEntityTooLarge)
		return
	case err != nil:
		http.Error(w, "the review cannot be read: "+err.Error(), http.StatusBadRequest)
		return
	}
	var review struct {
		Request struct {
			UID       types.UID `json:"uid"`
			Namespace string    `json:"namespace"`
		} `json:"request"`
	}
	if err := json.Unmarshal(body, &review); err != nil {
		http.Error(w, "the review cannot be read: "+err.Error(), http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), patience(r))
	defer cancel()
	leave, err := g.enter(ctx, review.Request.Namespace)
	if err != nil {
		refuse(w, review.Request.UID, err)
		return
	}
	defer leave()
	r = r.WithContext(ctx)
	r.Body = io.NopCloser(bytes.NewReader(body))
	g.Handler.ServeHTTP(w, r)
}

// enter waits for one of the places of a namespace.
func (g *guard) enter(ctx context.Context, namespace string) (leave func(), err error) {
	g.mu.Lock()
	l := g.namespaces[namespace]
	if l == nil {
		l = &lane{places: make(chan struct{}, maxAtOnce)}
		g.namespaces[namespace] = l
	}
	if l.users == maxAtOnce+maxWaiting {
		g.mu.Unlock()
		return nil, fmt.Errorf("%d tasks of namespace %q are being admitted already; try again", l.users, namespace)
	}
	l.users++
	g.mu.Unlock()
	gone := func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(g.namespaces, namespace)
		}
	}
	select {
	case l.places <- struct{}{}:
		return func() {
			<-l.places
			gone()
		}, nil
	case <-ctx.Done():
		gone()
		return nil, fmt.Errorf("there was no time left to admit the task: %d others of namespace %q are being admitted; try again", maxAtOnce, namespace)
	}
}

// patience is how long a review may be worked on: four fifths of the time that the API
// server waits, which it says with each call, so that it still gets an answer that says
// what the matter is.
func patience(r *http.Request) time.Duration {
	timeout, err := time.ParseDuration(r.URL.Query().Get("timeout"))
	if err != nil || timeout <= 0 {
		timeout = defaultTimeout
	}
	return min(timeout, maxTimeout) * 4 / 5
}

// refuse answers a review with 429, which clients take for a reason to try again.
func refuse(w http.ResponseWriter, uid types.UID, err error) {
	answer := admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "AdmissionReview"},
		Response: &admissionv1.AdmissionResponse{UID: uid, Result: &metav1.Status{
			Status: metav1.StatusFailure, Code: http.StatusTooManyRequests, Reason: metav1.StatusReasonTooManyRequests, Message: err.Error(),
			Details: &metav1.StatusDetails{RetryAfterSeconds: 1},
		}},
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer) // the caller has gone
}
