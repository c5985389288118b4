package shim_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"batchtask.dev/operator/internal/testenv"
	"batchtask.dev/operator/test/system"
)

const internalText = "（10100）内部服务器错误，请联系技术人员"

// The API server out of reach is an internal error in bounded time, whether it
// refuses connections, takes them and says nothing, or takes the request too.
func TestUnreachable(t *testing.T) {
	s := system.Run(t)
	for _, test := range []struct {
		name  string
		serve func(*testing.T, net.Listener)
	}{
		{"refuses", func(_ *testing.T, l net.Listener) { _ = l.Close() }},
		{"is silent", func(*testing.T, net.Listener) {}},
		{"does not answer", func(t *testing.T, l net.Listener) { // here nothing but the front's time-out ends the wait
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body) // or the server does not see that its caller has gone
				<-r.Context().Done()
			}))
			_ = server.Listener.Close()
			server.Listener = l
			server.StartTLS()
			t.Cleanup(server.Close)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = listener.Close() })
			test.serve(t, listener)
			config := rest.CopyConfig(s.Env.Config)
			config.Host = listener.Addr().String()
			config.TLSClientConfig = rest.TLSClientConfig{Insecure: true}
			// With the mapper of the good one: discovery is for the start.
			dead, err := client.New(config, client.Options{Scheme: testenv.Scheme(), Mapper: s.Env.Client.RESTMapper()})
			if err != nil {
				t.Fatal(err)
			}
			const timeout = 2 * time.Second
			f := startFront(t, s, settings{client: dead, timeout: timeout})
			namespace, productID := f.Namespace(t)
			c := &caller{f: f, namespace: namespace, productID: productID, secretID: "AKID" + namespace, secretKey: "key"}
			f.putSecret(t, namespace, "caller", c.secretID, c.secretKey)
			system.WaitFor(t, "the credentials to be accepted", func() (bool, any) {
				got := c.v2(t, "POST", map[string]string{"Action": "None"})
				return got["code"] == 4000.0, got
			})
			for _, params := range []map[string]string{
				c.message(nil),
				{"Action": "DescribeTask", "id": "5ad5aa513332ea4cb86e9ad5"},
				{"Action": "CancelTask", "id": "5ad5aa513332ea4cb86e9ad5"},
				{"Action": "ListTasks", "pageNum": "1", "pageSize": "10"},
			} {
				started := time.Now()
				got := c.v2(t, "POST", params)
				if got["message"] != internalText || got["code"] != 6000.0 {
					t.Errorf("%s is answered %v", params["Action"], got)
				}
				if took := time.Since(started); took > time.Minute {
					t.Errorf("%s took %s with a time-out of %s", params["Action"], took, timeout)
				}
			}
			if tasks := c.tasks(t); len(tasks) > 0 {
				t.Errorf("there are tasks: %v", tasks)
			}
		})
	}
}

// A create whose answer is lost is not repeated: there is one task, and the caller
// is told that nobody knows.
func TestLostAnswer(t *testing.T) {
	s := system.Run(t)
	var creates atomic.Int32
	lossy := interceptor.NewClient(s.Env.Client, interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.CreateOption) error {
			creates.Add(1)
			if err := c.Create(ctx, obj, opts...); err != nil {
				return err
			}
			return context.DeadlineExceeded
		},
	})
	f := startFront(t, s, settings{client: lossy})
	c := f.newCaller(t)
	if got := c.v2(t, "POST", c.message(map[string]string{"scheduleTimeInSeconds": inAnHour()})); got["message"] != internalText {
		t.Errorf("CreateTask is answered %v", got)
	}
	if tasks := c.tasks(t); len(tasks) != 1 || creates.Load() != 1 {
		t.Errorf("there are %d tasks of %d creates, want 1", len(tasks), creates.Load())
	}
	if got := c.v2(t, "POST", map[string]string{"Action": "ListTasks", "pageNum": "1", "pageSize": "10"}); got["taskTotalCount"] != 1.0 {
		t.Errorf("the caller cannot find its task: %v", got)
	}
}

// Callers that are slow to send their bodies, and have shown no credentials yet, keep
// nobody else from being served.
func TestSlowBodies(t *testing.T) {
	s := system.Run(t)
	f := startFront(t, s, settings{maxInFlight: 1})
	c := f.newCaller(t)
	for i, size := range slices.Concat(slices.Repeat([]int{1000}, 3), slices.Repeat([]int{200_000}, 40)) {
		conn, err := net.Dial("tcp", strings.TrimPrefix(f.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		if _, err := fmt.Fprintf(conn, "POST /v2/index.php HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", size); err != nil {
			t.Fatal(err)
		}
		// The server says so when the front begins to read.
		if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.Contains(line, "100 Continue") {
			t.Fatalf("caller %d is answered %q, %v", i, line, err)
		}
		if _, err := conn.Write(make([]byte, size/2)); err != nil {
			t.Fatal(err)
		}
	}
	if got := c.v2(t, "POST", c.message(nil)); got["code"] != 0.0 {
		t.Errorf("CreateTask is answered %v", got)
	}
}

// A panic costs one call an internal error, and is logged.
func TestPanic(t *testing.T) {
	s := system.Run(t)
	broken := interceptor.NewClient(s.Env.Client, interceptor.Funcs{
		Create: func(context.Context, client.WithWatch, client.Object, ...client.CreateOption) error {
			panic("out of " + "order")
		},
	})
	f := startFront(t, s, settings{client: broken})
	c := f.newCaller(t)
	for range 2 {
		if got := c.v2(t, "POST", c.message(nil)); got["message"] != internalText {
			t.Errorf("CreateTask is answered %v", got)
		}
	}
	if log := f.log.String(); !strings.Contains(log, "out of order") || !strings.Contains(log, "faults_test.go") {
		t.Errorf("the log does not tell of the panic and its place:\n%s", log)
	}
}

// The log and the metrics tell what happened, and nothing that is secret or meant
// for devices.
func TestLogAndMetrics(t *testing.T) {
	s := system.Run(t)
	f := startFront(t, s, settings{})
	c := f.newCaller(t)
	id := c.mustCreate(t, map[string]string{"tasks": `{"publishMessageTask":{"payload":"the secret payload","topic":"event"}}`})
	c.v2(t, "POST", c.message(map[string]string{"tasks": `{"publishMessageTask":{"payload":"the secret payload","topic":"a/b"}}`}))
	c.v2(t, "POST", c.message(map[string]string{"deviceNameFilter": "("}))
	c.v2(t, "POST", map[string]string{"Action": "Nonsense" + strings.Repeat("x", 100)})
	log := f.log.String()
	for _, want := range []string{`"taskId":"` + id, `"code":"10002"`, `"code":"4000"`, `"action":"CreateTask"`, `"secretId":"` + c.secretID, `"account":"` + c.namespace, `"requestId":"`} {
		if !strings.Contains(log, want) {
			t.Errorf("the log has no %s:\n%s", want, log)
		}
	}
	for _, secret := range []string{"secret payload", c.secretKey, strings.Repeat("x", 80)} {
		if strings.Contains(log, secret) {
			t.Errorf("the log has %q:\n%s", secret, log)
		}
	}
	if got := f.calls(t, "CreateTask", "v2", "10002"); got != 2 {
		t.Errorf("%v calls are counted as refused for an illegal value, want 2", got)
	}
	if got := f.calls(t, "unknown", "v2", "4000"); got != 1 {
		t.Errorf("%v calls of unknown actions are counted, want 1", got)
	}
}

// calls returns how many calls are counted with these labels.
func (f *front) calls(t *testing.T, action, version, code string) float64 {
	t.Helper()
	families, err := f.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != "batchtask_shim_calls_total" {
			continue
		}
		for _, metric := range family.GetMetric() {
			labels := map[string]string{}
			for _, pair := range metric.GetLabel() {
				labels[pair.GetName()] = pair.GetValue()
			}
			if labels["action"] == action && labels["version"] == version && labels["code"] == code {
				return metric.GetCounter().GetValue()
			}
		}
	}
	return 0
}
