package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/google/go-cmp/cmp"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/mqtt/mqtttest"
	"batchtask.dev/operator/internal/testenv"
)

// Two replicas of the shadow service, as shipped, with their own rights, while the
// manager runs tasks over the same devices. The active one is killed in the middle,
// the next one is stopped; each time the other goes on, and no report is lost.
func TestShadowServiceFailsOver(t *testing.T) {
	const devices, reports = 10, 30
	env := testenv.Start(t)
	broker := mqtttest.StartMosquitto(t)
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: systemNamespace}}
	if err := client.IgnoreAlreadyExists(env.Client.Create(t.Context(), namespace)); err != nil {
		t.Fatal(err)
	}
	kubectl(t, env.KubeConfig, "apply", "--server-side", "-k", filepath.Join("..", "..", "config", "shadow"))
	s := newSite(t, names(devices)...)
	account := impersonate(t, env.KubeConfig, "batchtask-shadow")
	replica := func() *process {
		return start(t, account, "shadow", "--mqtt-url="+broker.URL(), "--leader-elect", "--namespace="+systemNamespace,
			// Shorter times would make a leader give up whenever the machine stands still for a
			// moment, and a device would be told of an error.
			"--leader-elect-lease-duration=15s", "--leader-elect-renew-deadline=12s", "--leader-elect-retry-period=500ms", "--retry-time=30s")
	}
	active, standby := replica(), (*process)(nil)
	holder := s.leads("")
	standby = replica()
	startManager(t, broker.URL())

	s.ready(metav1.ConditionTrue, v1alpha1.ReasonProductReady, "") // before, nobody has its ID
	fleet := speak(t, broker.URL(), s.product, names(devices))
	var done atomic.Int64
	var all sync.WaitGroup
	for _, name := range names(devices) {
		all.Go(func() {
			for i := range reports {
				fleet.report(name, i)
				done.Add(1)
			}
		})
	}
	at := func(percent int64) {
		eventually(t, fmt.Sprintf("%d%% of the reports", percent), func() (bool, string) {
			return done.Load() >= percent*devices*reports/100, fmt.Sprint(done.Load(), " are done")
		})
	}
	for n, percent := range []int64{10, 30, 50} {
		at(percent)
		s.create(s.task(fmt.Sprint("task-", n)).UpdateShadow(fmt.Sprintf(`{"task-%d":%d}`, n, n)).Obj())
		switch n {
		case 0:
			active.kill()
			holder = s.leads(holder)
			active, standby = standby, replica()
		case 1:
			active.stop(t)
			holder = s.leads(holder)
			active = standby
		}
	}
	all.Wait()

	for n := range 3 {
		wantCounts(t, s.finished(fmt.Sprint("task-", n)), v1alpha1.TaskPhaseDone, v1alpha1.DeviceCounts{Matched: devices, Succeeded: devices})
	}
	want := map[string]any{"i": float64(reports - 1)}
	for i := range reports {
		want[fmt.Sprint("f", i)] = float64(i)
	}
	for _, name := range names(devices) {
		got := s.shadow(name)
		if diff := cmp.Diff(want, parse(t, got.Reported)); diff != "" {
			t.Errorf("reported by %s (-want +got):\n%s", name, diff)
		}
		if got.Desired != `{"task-0":0,"task-1":1,"task-2":2}` || got.Version < reports+3 {
			t.Errorf("%s is to be %s, at version %d", name, got.Desired, got.Version)
		}
	}
	active.stop(t)
	if bytes.Contains(active.output.buf.Bytes(), []byte("forbidden")) {
		t.Error("the shadow service was refused something, see its log")
	}
}

// leads waits until the Lease has a holder other than the one before, and returns it.
func (s *site) leads(before string) string {
	s.t.Helper()
	lease := &coordinationv1.Lease{}
	holder := ""
	eventually(s.t, "another leader", func() (bool, string) {
		err := s.client.Get(s.t.Context(), client.ObjectKey{Namespace: systemNamespace, Name: "batchtask-shadow"}, lease)
		if err == nil && lease.Spec.HolderIdentity != nil {
			holder = *lease.Spec.HolderIdentity
		}
		return holder != "" && holder != before, "the Lease is held by " + holder
	})
	return holder
}

// speakers are devices that report, over one connection.
type speakers struct {
	t       *testing.T
	client  paho.Client
	product string
	answers map[string]chan string
}

func speak(t *testing.T, brokerURL, product string, names []string) *speakers {
	t.Helper()
	d := &speakers{t: t, product: product, answers: map[string]chan string{}}
	for _, name := range names {
		d.answers["$shadow/operation/result/"+product+"/"+name] = make(chan string, 1000)
	}
	d.client = paho.NewClient(paho.NewClientOptions().AddBroker(brokerURL).SetClientID("speakers").SetPingTimeout(patience))
	for _, step := range []func() paho.Token{d.client.Connect, func() paho.Token {
		return d.client.Subscribe("$shadow/operation/result/"+product+"/+", 0, func(_ paho.Client, m paho.Message) {
			d.answers[m.Topic()] <- string(m.Payload())
		})
	}} {
		if token := step(); !token.WaitTimeout(patience) || token.Error() != nil {
			t.Fatalf("connecting the devices: %v", token.Error())
		}
	}
	t.Cleanup(func() { d.client.Disconnect(100) })
	return d
}

// report sends a report with QoS 1 until it is answered, as device libraries do.
func (d *speakers) report(name string, i int) {
	message := fmt.Sprintf(`{"type":"update","state":{"reported":{"i":%d,"f%d":%d}},"clientToken":"%d"}`, i, i, i, i)
	for range 60 {
		if token := d.client.Publish("$shadow/operation/"+d.product+"/"+name, 1, false, message); !token.WaitTimeout(patience) || token.Error() != nil {
			d.t.Errorf("publishing for %s: %v", name, token.Error())
			return
		}
		if d.answered(name, i) {
			return
		}
	}
	d.t.Errorf("report %d of %s was never answered", i, name)
}

func (d *speakers) answered(name string, i int) bool {
	patience := time.After(5 * time.Second)
	for {
		select {
		case <-patience:
			return false
		case text := <-d.answers["$shadow/operation/result/"+d.product+"/"+name]:
			var answer struct {
				Type        string
				Result      int
				ClientToken string
			}
			if err := json.Unmarshal([]byte(text), &answer); err != nil {
				d.t.Errorf("%s was answered %q: %v", name, text, err)
			}
			if answer.Type == "update" && answer.ClientToken == fmt.Sprint(i) {
				if answer.Result != 0 {
					d.t.Errorf("report %d of %s was answered with %d", i, name, answer.Result)
				}
				return true
			}
		}
	}
}
