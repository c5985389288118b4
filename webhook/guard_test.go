package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admission/v1"
	clocktesting "k8s.io/utils/clock/testing"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/taskid"
	"batchtask.dev/operator/internal/testobj"
)

func review(t *testing.T, url, namespace string) (code int, answer string) {
	t.Helper()
	text := fmt.Sprintf(`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"u","namespace":%q}}`, namespace)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Error(err)
	}
	return response.StatusCode, string(body)
}

// The reviews of one namespace take all the places that it has, and never end. Those of
// another are answered, and those too many are told so.
func TestGuard(t *testing.T) {
	var inside atomic.Int64
	g := newGuard(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if bytes.Contains(body, []byte(`"hostile"`)) {
			inside.Add(1)
			<-r.Context().Done()
			inside.Add(-1)
			return
		}
		_, _ = w.Write(body)
	}))
	server := httptest.NewServer(g)
	defer server.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range maxAtOnce + maxWaiting {
		request := httptest.NewRequestWithContext(ctx, http.MethodPost, "/?timeout=30s", strings.NewReader(`{"request":{"namespace":"hostile"}}`))
		go g.ServeHTTP(httptest.NewRecorder(), request)
	}
	users := func() int {
		g.mu.Lock()
		defer g.mu.Unlock()
		if l := g.namespaces["hostile"]; l != nil {
			return l.users
		}
		return 0
	}
	await(t, "all places to be taken", func() bool { return users() == maxAtOnce+maxWaiting && inside.Load() == maxAtOnce })
	if code, answer := review(t, server.URL, "victim"); code != http.StatusOK || !strings.Contains(answer, `"namespace":"victim"`) {
		t.Errorf("another namespace: %d %s", code, answer)
	}
	code, answer := review(t, server.URL, "hostile")
	var refused admissionv1.AdmissionReview
	if err := json.Unmarshal([]byte(answer), &refused); err != nil || code != http.StatusOK || refused.Response == nil {
		t.Fatalf("one too many: %d %s", code, answer)
	}
	if got := refused.Response; got.Allowed || got.UID != "u" || got.Result.Code != http.StatusTooManyRequests ||
		got.Result.Message != `272 tasks of namespace "hostile" are being admitted already; try again` {
		t.Errorf("one too many is answered with %+v", got)
	}
	if n := inside.Load(); n != maxAtOnce {
		t.Errorf("%d are worked on at once, want %d", n, maxAtOnce)
	}
	cancel()
	await(t, "the places to be free", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return len(g.namespaces) == 0
	})
}

// Who has no place in time is told so before the API server gives up.
func TestGuardWaitsNoLongerThanTheAPIServer(t *testing.T) {
	g := newGuard(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	for range maxAtOnce {
		if _, err := g.enter(t.Context(), "full"); err != nil {
			t.Fatal(err)
		}
	}
	answer := httptest.NewRecorder()
	g.ServeHTTP(answer, httptest.NewRequest(http.MethodPost, "/?timeout=50ms", strings.NewReader(`{"request":{"uid":"u","namespace":"full"}}`)))
	if !strings.Contains(answer.Body.String(), "there was no time left to admit the task: 16 others of namespace") {
		t.Errorf("it is answered with %s", answer.Body)
	}
	for query, want := range map[string]time.Duration{"": 8 * time.Second, "?timeout=10s": 8 * time.Second, "?timeout=300s": 24 * time.Second, "?timeout=-1s": 8 * time.Second, "?timeout=x": 8 * time.Second} {
		if got := patience(httptest.NewRequest(http.MethodPost, "/"+query, nil)); got != want {
			t.Errorf("%q: %v, want %v", query, got, want)
		}
	}
}

func TestGuardReadsNoLargeReview(t *testing.T) {
	g := newGuard(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it is worked on") }))
	for text, want := range map[string]int{
		strings.Repeat("a", maxReview+1): http.StatusRequestEntityTooLarge, "{": http.StatusBadRequest, "": http.StatusBadRequest, `{"request":{"namespace":1}}`: http.StatusBadRequest,
	} {
		answer := httptest.NewRecorder()
		g.ServeHTTP(answer, httptest.NewRequest(http.MethodPost, "/", strings.NewReader(text)))
		if answer.Code != want {
			t.Errorf("a review of %d bytes: %d, want %d", len(text), answer.Code, want)
		}
	}
}

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); {
		if time.Now().After(deadline) {
			t.Fatalf("waiting for %s", what)
		}
		<-time.After(time.Millisecond)
	}
}

// The ID is put on the label and nothing else is read or changed.
func TestIdentify(t *testing.T) {
	clk := clocktesting.NewFakePassiveClock(time.Unix(1700000000, 0))
	for _, tc := range []struct{ object, want string }{
		{
			`{"metadata":{"name":"5ad5aa513332ea4cb86e9ad5","labels":{"a":"b"},"generation":1},"spec":{"n":9223372036854775808,"x":"1"}}`,
			`{"metadata":{"generation":1,"labels":{"a":"b","iot.batchtask.dev/task-id":"5ad5aa513332ea4cb86e9ad5"},"name":"5ad5aa513332ea4cb86e9ad5"},"spec":{"n":9223372036854775808,"x":"1"}}`,
		},
		{
			`{"spec":17,"metadata":{"name":"5ad5aa513332ea4cb86e9ad5","labels":null}}`,
			`{"metadata":{"labels":{"iot.batchtask.dev/task-id":"5ad5aa513332ea4cb86e9ad5"},"name":"5ad5aa513332ea4cb86e9ad5"},"spec":17}`,
		},
	} {
		got, err := identify{clk}.label([]byte(tc.object))
		if err != nil {
			t.Errorf("%s: %v", tc.object, err)
		}
		if diff := cmp.Diff(tc.want, string(got)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	got, err := identify{clk}.label([]byte(`{"metadata":{"generateName":"a-"}}`))
	var named struct {
		Metadata struct{ Labels map[string]string }
	}
	if err != nil || json.Unmarshal(got, &named) != nil || !taskid.Valid(named.Metadata.Labels[v1alpha1.LabelTaskID]) {
		t.Errorf("a task without a name gets %s (%v)", got, err)
	}
	for _, object := range []string{``, `[]`, `{}`, `{"metadata":1}`, `{"metadata":{"labels":{"a":1}}}`} {
		if got, err := (identify{clk}).label([]byte(object)); err == nil {
			t.Errorf("%s becomes %s", object, got)
		}
	}
}

// silent stands for a store whose database does not answer.
type silent struct{}

func (silent) CountMatches(ctx context.Context, _ *v1alpha1.BatchTask) (int64, error) {
	<-ctx.Done()
	return 0, ctx.Err()
}

func TestAdviceHasABoundOfItsOwn(t *testing.T) {
	w := &BatchTask{Matches: silent{}, Advice: time.Millisecond}
	want := []string{"spec.deviceNameFilter: the devices that match could not be counted within 1ms"}
	if diff := cmp.Diff(want, w.preview(t.Context(), testobj.BatchTask("a").Obj())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
