package clients

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/hack/localenv"
	"batchtask.dev/operator/hack/simulator"
	"batchtask.dev/operator/internal/testobj"
)

// conflictID is a product ID that belongs to another account than those of the
// tests, which have a younger Product with it.
const conflictID = "CONFLICT01"

// suite is the environment of all tests.
type suite struct {
	ctx     context.Context // ends when a part of the environment does
	env     *localenv.Env
	owner   *v1alpha1.Product // of conflictID
	slowURL string            // a shim that allows two calls at once and then one a second
}

func newSuite(ctx context.Context, t *testing.T, env *localenv.Env, program string) *suite {
	t.Helper()
	s := &suite{ctx: ctx, env: env}
	s.create(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "owner"}})
	s.owner = testobj.Product("owner").In("owner").ID(conflictID).Obj()
	s.create(t, s.owner)
	s.slowURL = s.startSlow(t, program)
	return s
}

// startSlow starts a second shim and returns its URL.
func (s *suite) startSlow(t *testing.T, program string) string {
	t.Helper()
	address, probe := freeAddresses(s.ctx, t)
	cmd := exec.CommandContext(s.ctx, program, "shim", "--rate-limit=1", "--rate-burst=2", "--plain-http", "--all-namespaces",
		"--bind-address="+address, "--metrics-bind-address=0", "--health-probe-bind-address="+probe)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+s.env.KubeConfig)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 15 * time.Second
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting the second shim: %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("end of the second shim's log:\n%s", output.Bytes()[max(0, output.Len()-3000):])
		}
	})
	eventually(t, "the second shim to be ready", func() (bool, string) {
		request, err := http.NewRequestWithContext(s.ctx, http.MethodGet, "http://"+probe+"/readyz", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		request.Close = true
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return false, err.Error()
		}
		_ = response.Body.Close()
		return response.StatusCode == http.StatusOK, response.Status
	})
	return "http://" + address
}

// account is a namespace with credentials, a product and connected devices.
type account struct {
	*suite
	namespace, product  string
	secretID, secretKey string
	apiURL              string
	fleet               *simulator.Fleet
	nonce               int // of the last call from here
}

// firstAccount is the one that localenv has made credentials for.
func (s *suite) firstAccount(t *testing.T) *account {
	t.Helper()
	a := &account{
		suite: s, namespace: s.env.Namespace, product: "ABCDE12345", apiURL: s.env.APIURL,
		secretID: s.env.SecretID, secretKey: s.env.SecretKey,
	}
	a.equip(t, "front-door", "back-door", "door-1", "window-1")
	return a
}

// newAccount makes another, which also has a Product of conflictID.
func (s *suite) newAccount(t *testing.T, name, product string) *account {
	t.Helper()
	a := &account{
		suite: s, namespace: name, product: product, apiURL: s.env.APIURL,
		secretID: "AKID" + rand.Text(), secretKey: rand.Text(),
	}
	s.create(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	s.create(t, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "credentials", Namespace: name, Labels: map[string]string{v1alpha1.LabelCredentials: "true"}},
		StringData: map[string]string{v1alpha1.CredentialsSecretID: a.secretID, v1alpha1.CredentialsSecretKey: a.secretKey},
	})
	a.equip(t, "door-1", "door-2", "window-1")

	// Of two products of one second either may be the older one.
	eventually(t, "another second", func() (bool, string) {
		return time.Now().Unix() > s.owner.CreationTimestamp.Unix(), "it is the same"
	})
	conflict := testobj.Product("conflict").In(name).ID(conflictID).Obj()
	s.create(t, conflict)
	eventually(t, "the conflict to be noticed", func() (bool, string) {
		if err := s.env.Client.Get(s.ctx, client.ObjectKeyFromObject(conflict), conflict); err != nil {
			return false, err.Error()
		}
		return meta.IsStatusConditionFalse(conflict.Status.Conditions, v1alpha1.ConditionReady), fmt.Sprint(conflict.Status.Conditions)
	})
	// Both shims hear of the credentials a moment after they are made.
	for _, shim := range []string{s.slowURL, s.env.APIURL} {
		a.apiURL = shim
		eventually(t, "the shim to know the credentials", func() (bool, string) {
			answer := a.call(t, "Action=ListTasks&pageNum=1&pageSize=1&")
			return answer["codeDesc"] == "Success", fmt.Sprint(answer)
		})
	}
	return a
}

// equip makes the product and its devices, and connects these.
func (a *account) equip(t *testing.T, names ...string) {
	t.Helper()
	product := testobj.Product("product").In(a.namespace).ID(a.product).Obj()
	a.create(t, product)
	for _, name := range names {
		a.create(t, testobj.Device(name).In(a.namespace).Product(a.product).Obj())
	}
	fleet, err := simulator.Start(a.ctx, simulator.Options{BrokerURL: a.env.MQTTURL, ProductID: a.product, Names: names, Keep: 1000})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fleet.Close)
	a.fleet = fleet
	// A task waits for that too, but not for long.
	eventually(t, "the product to be Ready", func() (bool, string) {
		if err := a.env.Client.Get(a.ctx, client.ObjectKeyFromObject(product), product); err != nil {
			return false, err.Error()
		}
		return meta.IsStatusConditionTrue(product.Status.Conditions, v1alpha1.ConditionReady), fmt.Sprint(product.Status.Conditions)
	})
}

func (s *suite) create(t *testing.T, object client.Object) {
	t.Helper()
	if err := s.env.Client.Create(s.ctx, object); err != nil {
		t.Fatalf("creating %T %s: %v", object, object.GetName(), err)
	}
}

// freeAddresses returns two that differ: neither is given back before both are found.
func freeAddresses(ctx context.Context, t *testing.T) (one, other string) {
	t.Helper()
	var config net.ListenConfig
	for _, address := range []*string{&one, &other} {
		listener, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = listener.Close() }()
		*address = listener.Addr().String()
	}
	return one, other
}

// eventually waits until a condition holds; state says how far it is.
func eventually(t *testing.T, what string, holds func() (ok bool, state string)) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	end := time.After(time.Minute)
	for {
		ok, state := holds()
		if ok {
			return
		}
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("waited a minute for %s: %s", what, state)
		}
	}
}
