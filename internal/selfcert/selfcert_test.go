package selfcert

import (
	"crypto/x509"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	testingclock "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// Replicas that begin at once, with an empty Secret, serve with one certificate; callers that
// trust its authority go on trusting it when it is renewed and when names are added.
func TestKeeper(t *testing.T) {
	env := testenv.Start(t)
	namespace := env.Namespace(t)
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "tls"}}
	if err := env.Client.Create(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	clock := testingclock.NewFakeClock(start)
	keeper := func(names ...string) *Keeper {
		return &Keeper{Client: env.Client, Secret: client.ObjectKeyFromObject(secret), Names: names, Clock: clock, Log: logr.Discard()}
	}
	replicas := []*Keeper{keeper("shim.svc"), keeper("shim.svc"), keeper("shim.svc")}
	if _, err := replicas[0].GetCertificate(nil); err == nil {
		t.Error("a certificate before there is one")
	}
	var working sync.WaitGroup
	for _, k := range replicas {
		working.Go(func() {
			if err := k.Refresh(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	working.Wait()
	serial := func(k *Keeper) string {
		t.Helper()
		c, err := k.GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return c.Leaf.SerialNumber.String()
	}
	for _, k := range replicas[1:] {
		if serial(k) != serial(replicas[0]) {
			t.Error("two replicas have different certificates")
		}
	}
	if err := env.Client.Get(t.Context(), client.ObjectKeyFromObject(secret), secret); err != nil {
		t.Fatal(err)
	}
	trusted := x509.NewCertPool()
	if !trusted.AppendCertsFromPEM(secret.Data[KeyCA]) {
		t.Fatalf("no authority in %q", secret.Data[KeyCA])
	}
	verify := func(k *Keeper, name string) error {
		c, err := k.GetCertificate(nil)
		if err != nil {
			return err
		}
		_, err = c.Leaf.Verify(x509.VerifyOptions{Roots: trusted, DNSName: name, CurrentTime: clock.Now()})
		return err
	}
	if err := verify(replicas[0], "shim.svc"); err != nil {
		t.Error(err)
	}

	was := serial(replicas[0])
	more := keeper("shim.svc", "iot.example.org", "10.0.0.1")
	if err := more.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"shim.svc", "iot.example.org", "10.0.0.1"} {
		if err := verify(more, name); err != nil {
			t.Error(err)
		}
	}
	if err := replicas[0].Refresh(t.Context()); err != nil || serial(replicas[0]) != serial(more) || serial(more) == was {
		t.Errorf("after names were added a replica has serial %s, the Secret %s, before it was %s (%v)", serial(replicas[0]), serial(more), was, err)
	}
	clock.SetTime(start.Add(certificateFor - 24*time.Hour))
	was = serial(more)
	if err := more.Refresh(t.Context()); err != nil || serial(more) == was {
		t.Errorf("a certificate that ends tomorrow was not renewed (%v)", err)
	}
	if err := verify(more, "shim.svc"); err != nil {
		t.Error(err)
	}
	clock.SetTime(start.Add(authorityFor))
	if err := more.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := verify(more, "shim.svc"); err == nil {
		t.Error("the authority has ended, and was not made anew")
	}
}
