package shim

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr/funcr"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/qcloud"
)

// lookup finds the credentials of every SecretId.
type lookup func() []qcloud.Candidate

func (l lookup) Lookup(string) []qcloud.Candidate { return l() }

// handler serves callers whose credentials l finds; creates of tasks wait until over is closed.
// Its log is in lines.
func handler(t *testing.T, l lookup, over <-chan struct{}, lines *[]string) *Handler {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	return NewHandler(Options{
		Client: fake.NewClientBuilder().WithScheme(scheme).WithInterceptorFuncs(interceptor.Funcs{
			Create: func(context.Context, client.WithWatch, client.Object, ...client.CreateOption) error {
				<-over
				return nil
			},
		}).Build(),
		Verifier: qcloud.NewVerifier(l, clock.RealClock{}, qcloud.Options{}), Clock: clock.RealClock{},
		Metrics: NewMetrics(prometheus.NewRegistry()), Failures: 0.001,
		Log: funcr.New(func(_, line string) {
			mu.Lock()
			defer mu.Unlock()
			*lines = append(*lines, line)
		}, funcr.Options{}),
	})
}

// signed is a call that makes a task, with TC3.
func signed(t *testing.T, key, padding string) *http.Request {
	t.Helper()
	body := `{"TaskType":"PublishMessage","ProductId":"A","DeviceNameFilter":"x","ScheduleTimeInSeconds":0,"Tasks":{"PublishMessageTask":{"Topic":"t","Payload":"p"}}}` + padding
	r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
	for name, value := range map[string]string{
		"Content-Type": "application/json", "X-TC-Action": qcloud.ActionCreateTask, "X-TC-Version": qcloud.VersionV3,
		"X-TC-Timestamp": strconv.FormatInt(time.Now().Unix(), 10),
	} {
		r.Header.Set(name, value)
	}
	if err := qcloud.AuthorizeTC3(r, []byte(body), qcloud.DefaultService, "id", key); err != nil {
		t.Fatal(err)
	}
	return r
}

// Equal calls that wait for the first one hold no memory for bodies, of which there is one for
// all accounts.
func TestEqualCallsHoldNoBodies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		over := make(chan struct{})
		var lines []string
		h := handler(t, func() []qcloud.Candidate { return []qcloud.Candidate{{Account: "ns", SecretKey: "key"}} }, over, &lines)
		const calls = 20
		answers := make([]*httptest.ResponseRecorder, calls)
		var asking sync.WaitGroup
		for i := range answers {
			answers[i] = httptest.NewRecorder()
			r := signed(t, "key", strings.Repeat(" ", 8*bodyStep))
			asking.Go(func() { h.ServeHTTP(answers[i], r) })
		}
		synctest.Wait()
		if held := maxBodies - h.bodies.left; held == 0 || held > 10*bodyStep {
			t.Errorf("%d calls, of which one is carried out, hold %d bytes", calls, held)
		}
		close(over)
		asking.Wait()
		for _, answer := range answers {
			if got := answer.Body.String(); !strings.Contains(got, `"TaskId"`) {
				t.Errorf("a call is answered %s", got)
			}
		}
		if h.bodies.left != maxBodies || len(h.bodies.accounts) != 0 {
			t.Errorf("in the end %d bytes are left, want %d, and %d accounts have some", h.bodies.left, maxBodies, len(h.bodies.accounts))
		}
	})
}

// A turn is given back whatever happens, and who hangs up while waiting for one is a failure
// like others: no fault of the server, and one too many is not in the log.
func TestTurnsAreGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lines []string
		broken := true
		h := handler(t, func() []qcloud.Candidate {
			if broken {
				panic("a fault")
			}
			return []qcloud.Candidate{{Account: "ns", SecretKey: "key"}}
		}, nil, &lines)
		from := h.peers.of("192.0.2.1:1234") // as httptest has it
		for range failuresAtOnce {
			h.peers.failed(from)
		}
		h.ServeHTTP(httptest.NewRecorder(), signed(t, "key", ""))
		if len(from.turn) != 0 || len(h.peers.turns) != 0 {
			t.Fatal("a fault of the program keeps a turn")
		}
		broken, lines = false, nil
		done, err := h.peers.turn(t.Context(), from)
		if err != nil {
			t.Fatal(err)
		}
		defer done()
		gone, hangUp := context.WithCancel(t.Context())
		hangUp()
		answer := httptest.NewRecorder()
		h.ServeHTTP(answer, signed(t, "key", "").WithContext(gone))
		if got := answer.Body.String(); len(lines) != 0 || !strings.Contains(got, "RequestLimitExceeded") {
			t.Errorf("whoever hangs up is answered %s, and the log has %q", got, lines)
		}
	})
}

// Calls that wait to be verified give way where memory is short: they are nobody's yet, and
// whoever sends many that fail could else keep all of it.
func TestCallsThatWaitForTheirTurnGiveWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lines []string
		h := handler(t, func() []qcloud.Candidate { return []qcloud.Candidate{{Account: "ns", SecretKey: "key"}} }, nil, &lines)
		h.bodies.left = 4 * bodyStep
		from := h.peers.of("192.0.2.1:1234")
		for range failuresAtOnce {
			h.peers.failed(from)
		}
		done, err := h.peers.turn(t.Context(), from)
		if err != nil {
			t.Fatal(err)
		}
		var asking sync.WaitGroup
		answers := make([]*httptest.ResponseRecorder, 4)
		for i := range answers {
			answers[i] = httptest.NewRecorder()
			r := signed(t, "wrong", "")
			asking.Go(func() { h.ServeHTTP(answers[i], r) })
			synctest.Wait()
		}
		if h.bodies.left != 0 {
			t.Fatalf("%d bytes are left, which is no test", h.bodies.left)
		}
		other := signed(t, "key", "")
		other.RemoteAddr = "192.0.2.2:1"
		other.Header.Set("X-TC-Action", "None")
		answer := httptest.NewRecorder()
		h.ServeHTTP(answer, other)
		if got := answer.Body.String(); !strings.Contains(got, "InvalidAction") {
			t.Errorf("a caller from elsewhere is answered %s", got)
		}
		synctest.Wait()
		if answers[0].Body.Len() == 0 || answers[1].Body.Len() != 0 {
			t.Error("want the call that has waited longest to give way, and no other")
		}
		done()
		asking.Wait()
		if h.bodies.left != 4*bodyStep || h.bodies.arriving.Len() != 0 || len(from.turn) != 0 {
			t.Errorf("in the end %d bytes are left, %d bodies arrive, %d turns are taken", h.bodies.left, h.bodies.arriving.Len(), len(from.turn))
		}
	})
}
