package e2e

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/mqtt/mqtttest"
)

// An UpdateShadow task whose manager is killed in the middle raises the version of
// every shadow once, merges as it should, and sends the delta where one is left.
func TestUpdateShadowKilled(t *testing.T) {
	const devices, window = 600, 50
	broker := mqtttest.StartMosquitto(t)
	tap := newTap(t, broker.URL())
	s := newSite(t, names(devices)...)
	before := &v1alpha1.DeviceShadow{
		Reported: `{"lamp":{"colour":"red","level":3},"state":"closed"}`,
		Desired:  `{"lamp":{"colour":"red","old":1},"gone":true}`,
		Metadata: `{}`, Version: 7, Timestamp: 1,
	}
	s.setShadow("d-00001", before)
	same := *before
	same.Reported, same.Desired = `{"lamp":{"level":5},"state":"open"}`, `{}`
	s.setShadow("d-00002", &same)
	box := subscribe(t, broker.URL(), "$shadow/operation/result/"+s.product+"/+")

	flags := []string{fmt.Sprintf("--publish-window=%d", window), "--checkpoint-interval=200ms", noResend}
	tap.letPass(0)
	m := startManager(t, tap.url(), flags...)
	s.create(s.task("open").UpdateShadow(`{"state":"open","lamp":{"level":5,"old":null},"gone":null}`).Filter(".*").Obj())
	tap.killAt(t, m, []int{20, 300}, window, flags...)
	task := s.finished("open")
	wantCounts(t, task, v1alpha1.TaskPhaseDone, v1alpha1.DeviceCounts{Matched: devices, Succeeded: devices})
	wantEvidence(t, tap, devices-1, 2*window)

	for _, name := range names(devices) {
		want := int64(1)
		if name == "d-00001" || name == "d-00002" {
			want = 8
		}
		if shadow := s.shadow(name); shadow.Version != want {
			t.Errorf("%s has version %d, want %d", name, shadow.Version, want)
		}
	}
	if diff := cmp.Diff(parse(t, `{"state":"open","lamp":{"colour":"red","level":5}}`), parse(t, s.shadow("d-00001").Desired)); diff != "" {
		t.Errorf("desired (-want +got):\n%s", diff)
	}
	wantDelta(t, box, s.product, "d-00001", 8, `{"state":"open","lamp":{"level":5}}`)
	wantDelta(t, box, s.product, "d-00003", 1, `{"state":"open","lamp":{"level":5}}`)
	if got := box.on("$shadow/operation/result/" + s.product + "/d-00002"); len(got) != 0 {
		t.Errorf("a device that differs in nothing got %q", got)
	}
}

// wantDelta checks the message that a device library expects.
func wantDelta(t *testing.T, box *inbox, product, device string, version int64, state string) {
	t.Helper()
	var got []string
	eventually(t, "the delta of "+device, func() (bool, string) {
		got = box.on("$shadow/operation/result/" + product + "/" + device)
		return len(got) > 0, "nothing came"
	})
	message := parse(t, got[0])
	payload, _ := message["payload"].(map[string]any)
	if message["type"] != "delta" || payload == nil || payload["version"] != float64(version) {
		t.Errorf("delta of %s: %s", device, got[0])
		return
	}
	if diff := cmp.Diff(parse(t, state), payload["state"]); diff != "" {
		t.Errorf("state of the delta of %s (-want +got):\n%s", device, diff)
	}
	if _, ok := message["clientToken"]; ok {
		t.Errorf("the delta of %s has a clientToken: %s", device, got[0])
	}
	seconds, _ := message["timestamp"].(float64)
	millis, _ := payload["timestamp"].(float64)
	if now := float64(time.Now().Unix()); seconds < now-300 || seconds > now+300 || millis < (now-300)*1000 {
		t.Errorf("timestamps of the delta of %s: %s", device, got[0])
	}
	if metadata, _ := payload["metadata"].(map[string]any); metadata == nil {
		t.Errorf("the delta of %s has no metadata: %s", device, got[0])
	}
}

func parse(t *testing.T, text string) map[string]any {
	t.Helper()
	var v map[string]any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return v
}

func (s *site) device(name string) *v1alpha1.Device {
	s.t.Helper()
	device := &v1alpha1.Device{}
	if err := s.client.Get(s.t.Context(), client.ObjectKey{Namespace: s.namespace, Name: name}, device); err != nil {
		s.t.Fatalf("get device %s: %v", name, err)
	}
	return device
}

func (s *site) shadow(name string) *v1alpha1.DeviceShadow {
	s.t.Helper()
	shadow := s.device(name).Status.Shadow
	if shadow == nil {
		s.t.Fatalf("device %s has no shadow", name)
	}
	return shadow
}

func (s *site) setShadow(name string, shadow *v1alpha1.DeviceShadow) {
	s.t.Helper()
	device := s.device(name)
	device.Status.Shadow = shadow
	if err := s.client.Status().Update(s.t.Context(), device); err != nil {
		s.t.Fatalf("write shadow of %s: %v", name, err)
	}
}

func (s *site) cancel(name string) {
	s.t.Helper()
	task := s.get(name)
	before := task.DeepCopy()
	task.Spec.Cancel = true
	if err := s.client.Patch(s.t.Context(), task, client.MergeFrom(before)); err != nil {
		s.t.Fatalf("cancel task %s: %v", name, err)
	}
}
