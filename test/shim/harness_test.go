// Package shim_test runs the HTTP front before a real API server with the real
// webhooks and controllers; an executor that the test drives stands for devices.
package shim_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet/kube"
	"batchtask.dev/operator/internal/mqtt"
	"batchtask.dev/operator/internal/qcloud"
	"batchtask.dev/operator/internal/shim"
	"batchtask.dev/operator/internal/testenv"
	"batchtask.dev/operator/test/system"
)

func TestMain(m *testing.M) { testenv.Main(m, testenv.WithWebhooks()) }

const (
	v2host = "iotcloud.api.qcloud.com"
	v3host = "iotcloud.tencentcloudapi.com"
)

// front is a running HTTP front.
type front struct {
	*system.System
	url      string
	events   *events.FakeRecorder
	log      *lines
	registry *prometheus.Registry
}

// settings of a front that are not the defaults.
type settings struct {
	client  client.Client // in place of one to the API server
	broker  string        // URL; none without
	timeout time.Duration
	rate    float64
	burst   int

	maxInFlight int
	failures    float64      // a second, of one address
	shadows     shim.Shadows // in place of those at the API server
}

// startFront serves the API, with credentials from Secrets, until the test ends.
func startFront(t *testing.T, s *system.System, set settings) *front {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	f := &front{System: s, events: events.NewFakeRecorder(100), log: &lines{}, registry: prometheus.NewRegistry()}
	secrets, err := cache.New(s.Env.Config, cache.Options{
		Scheme:   testenv.Scheme(),
		ByObject: map[client.Object]cache.ByObject{&corev1.Secret{}: shim.SecretCache(nil)},
	})
	if err != nil {
		t.Fatal(err)
	}
	metrics := shim.NewMetrics(f.registry)
	accounts := shim.NewAccounts(metrics)
	synced, err := accounts.Watch(logr.NewContext(ctx, logr.New(f.log.sink())), secrets, f.events)
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() { _ = secrets.Start(ctx) })
	t.Cleanup(func() {
		stop()
		running.Wait()
	})
	system.WaitFor(t, "the credentials to be read", func() (bool, any) { return synced(), nil })

	if set.client == nil {
		set.client = s.Env.Client
	}
	if set.rate == 0 {
		set.rate, set.burst = 1000, 1000
	}
	if set.timeout == 0 {
		set.timeout = time.Minute // a busy machine
	}
	if set.shadows == nil {
		set.shadows = kube.NewShadows(set.client)
	}
	clk := clock.RealClock{}
	var publisher shim.Publisher
	if set.broker != "" {
		// A message is sent again, and arrives twice, when the broker seems to be stuck: not
		// because the machine is busy.
		pool, err := mqtt.New(mqtt.Options{URL: set.broker, WriteTimeout: 30 * time.Second, AckTimeout: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		running.Go(func() { _ = pool.Start(ctx) })
		publisher = pool
	}
	server := httptest.NewServer(shim.NewHandler(shim.Options{
		Client: set.client, Shadows: set.shadows, Publisher: publisher, Clock: clk, Timeout: set.timeout, MaxInFlight: set.maxInFlight, Failures: set.failures, Log: logr.New(f.log.sink()), Metrics: metrics,
		Verifier: qcloud.NewVerifier(accounts, clk, qcloud.Options{Limiter: shim.NewLimits(set.rate, set.burst, clk)}),
	}))
	t.Cleanup(server.Close)
	f.url = server.URL
	return f
}

// lines is a log.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) sink() logr.LogSink {
	return funcr.NewJSON(func(line string) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.text.WriteString(line + "\n")
	}, funcr.Options{}).GetSink()
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// caller is a client of the API with one pair of credentials.
type caller struct {
	f         *front
	namespace string
	productID string
	secretID  string
	secretKey string
}

// newCaller makes an account: a namespace with a product and a Secret.
func (f *front) newCaller(t *testing.T) *caller {
	t.Helper()
	namespace, productID := f.Namespace(t)
	c := &caller{f: f, namespace: namespace, productID: productID, secretID: "AKID" + namespace, secretKey: "key of " + namespace}
	f.putSecret(t, namespace, "caller", c.secretID, c.secretKey)
	c.accepted(t)
	return c
}

// accepted waits until the credentials are known.
func (c *caller) accepted(t *testing.T) {
	t.Helper()
	system.WaitFor(t, "the credentials to be accepted", func() (bool, any) {
		answer := c.v2(t, "POST", map[string]string{"Action": "DescribeTask", "id": "none"})
		return answer["code"] == 5000.0, answer
	})
}

// putSecret makes or replaces a Secret with credentials. It is gone after the test:
// the fronts of others would tell of it too.
func (f *front) putSecret(t *testing.T, namespace, name, secretID, secretKey string) *corev1.Secret {
	t.Helper()
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{v1alpha1.LabelCredentials: "true"}},
		Data:       map[string][]byte{v1alpha1.CredentialsSecretID: []byte(secretID), v1alpha1.CredentialsSecretKey: []byte(secretKey)},
	}
	err := f.Env.Client.Create(t.Context(), secret)
	if err == nil {
		t.Cleanup(func() {
			if err := f.Env.Client.Delete(context.Background(), secret.DeepCopy()); client.IgnoreNotFound(err) != nil {
				t.Errorf("deleting the Secret: %v", err)
			}
		})
	}
	if client.IgnoreAlreadyExists(err) == nil && err != nil {
		err = f.Env.Client.Update(t.Context(), secret)
	}
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

// sign completes the parameters of a call with the common ones, each that is not
// there already, and the signature.
func (c *caller) sign(method string, version qcloud.Version, params map[string]string) map[string]string {
	signer := qcloud.Signer{Version: version, Host: v2host, SecretID: c.secretID, SecretKey: c.secretKey}
	if version == qcloud.V3 {
		signer.Host = v3host
	}
	all := map[string]string{"Region": "gz"}
	maps.Copy(all, params)
	return signer.Sign(method, time.Now(), all)
}

// v2 makes a call of V2 and returns the answer.
func (c *caller) v2(t *testing.T, method string, params map[string]string) map[string]any {
	t.Helper()
	form := qcloud.EncodeForm(c.sign(method, qcloud.V2, params))
	if method == http.MethodGet {
		return c.f.send(t, method, "/v2/index.php?"+form, nil, "")
	}
	return c.f.send(t, method, "/v2/index.php", http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}, form)
}

// calls counts those of V3, to tell apart what is equal but for it.
var calls atomic.Int64

// v3 makes a call of V3 with a JSON body and returns the content of Response. No two calls are
// equal, since of equal ones within a second the second is taken for a replay.
func (c *caller) v3(t *testing.T, action, body string) map[string]any {
	t.Helper()
	body += strings.Repeat(" ", int(calls.Add(1)%1000))
	return response(t, c.f.send(t, http.MethodPost, "/", c.headers(t, action, body), body))
}

// headers are those of a signed call of V3.
func (c *caller) headers(t *testing.T, action, body string) http.Header {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, "http://"+v3host+"/", strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("X-TC-Action", action)
	r.Header.Set("X-TC-Version", qcloud.VersionV3)
	r.Header.Set("X-TC-Timestamp", strconv.FormatInt(time.Now().Unix(), 10))
	if err := qcloud.AuthorizeTC3(r, []byte(body), qcloud.DefaultService, c.secretID, c.secretKey); err != nil {
		t.Fatal(err)
	}
	return r.Header
}

func response(t *testing.T, answer map[string]any) map[string]any {
	t.Helper()
	inner, ok := answer["Response"].(map[string]any)
	if !ok || inner["RequestId"] == "" {
		t.Fatalf("answer %v, want a Response with a RequestId", answer)
	}
	return inner
}

// send returns the JSON that is answered, with status 200.
func (f *front) send(t *testing.T, method, target string, header http.Header, body string) map[string]any {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, f.url+target, bytes.NewReader([]byte(body)))
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range header {
		r.Header[name] = values
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	var value map[string]any
	if err := json.Unmarshal(text, &value); err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("%s %s is answered %s: %q", method, target, answer.Status, text)
	}
	return value
}

// message returns the parameters of a good CreateTask that sends a message.
func (c *caller) message(more map[string]string) map[string]string {
	params := map[string]string{
		"Action": "CreateTask", "taskType": "PublishMessage", "productID": c.productID, "deviceNameFilter": "^door",
		"scheduleTimeInSeconds": "0", "tasks": `{"publishMessageTask":{"payload":"close", "topic":"event"}}`,
	}
	for name, value := range more {
		params[name] = value
	}
	return params
}

// mustCreate makes a task and returns its ID.
func (c *caller) mustCreate(t *testing.T, more map[string]string) string {
	t.Helper()
	answer := c.v2(t, "POST", c.message(more))
	id, _ := answer["taskId"].(string)
	if answer["code"] != 0.0 || len(id) != 24 {
		t.Fatalf("CreateTask is answered %v", answer)
	}
	return id
}

// tasks returns the names of the account's tasks.
func (c *caller) tasks(t *testing.T) []string {
	t.Helper()
	var list v1alpha1.BatchTaskList
	if err := c.f.Env.Client.List(t.Context(), &list, client.InNamespace(c.namespace)); err != nil {
		t.Fatal(err)
	}
	var names []string
	for i := range list.Items {
		names = append(names, list.Items[i].Name)
	}
	return names
}

// object returns the object behind an ID.
func (c *caller) object(t *testing.T, id string) *v1alpha1.BatchTask {
	t.Helper()
	task := &v1alpha1.BatchTask{}
	if err := c.f.Env.Client.Get(t.Context(), client.ObjectKey{Namespace: c.namespace, Name: id}, task); err != nil {
		t.Fatal(err)
	}
	return task
}

func inAnHour() string { return fmt.Sprint(time.Now().Add(time.Hour).Unix()) }

func keyOf(object client.Object) client.ObjectKey { return client.ObjectKeyFromObject(object) }
