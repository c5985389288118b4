package service

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"batchtask.dev/operator/internal/mqtt/mqtttest"
)

// With the access list that is shipped a device reaches its own shadow and no other.
func TestAccessList(t *testing.T) {
	tool, err := exec.LookPath("mosquitto_passwd")
	if err != nil {
		t.Skip("mosquitto_passwd is not installed")
	}
	passwords := filepath.Join(t.TempDir(), "passwords")
	for i, user := range []string{"batchtask-manager", "batchtask-shadow", "ABCDE12345/good", "ABCDE12345/bad"} {
		args := []string{"-b", passwords, user, "secret"}
		if i == 0 {
			args = append([]string{"-c"}, args...)
		}
		if out, err := exec.CommandContext(t.Context(), tool, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", tool, err, out)
		}
	}
	acl, err := filepath.Abs("../../../config/mosquitto/acl")
	if err != nil {
		t.Fatal(err)
	}
	broker := mqtttest.StartMosquitto(t, mqtttest.WithPasswordFile(passwords), mqtttest.WithConfig("acl_file "+acl))
	as := func(user string) string {
		return strings.Replace(broker.URL(), "//", "//"+strings.ReplaceAll(user, "/", "%2F")+":secret@", 1)
	}
	store := memory(t, "good", "bad")
	start(t, as("batchtask-shadow"), store, Options{})
	good := connect(t, as("ABCDE12345/good"), "good", 1)
	bad := connect(t, as("ABCDE12345/bad"), "bad", 1)
	heard := bad.hear("#", "$shadow/#", "$shadow/operation/+/+", "$shadow/operation/result/ABCDE12345/good", "ABCDE12345/+/+", "ABCDE12345/good/event")

	update := `{"type":"update","state":{"reported":{"by":%q}},"clientToken":%q}`
	if got := parse(t, good.ask("good", fmt.Sprintf(update, "good", "g"))); got.Payload.Version != 1 {
		t.Errorf("version %d of a device's own update, want 1", got.Payload.Version)
	}
	forge(t, as("ABCDE12345/bad"), device{product.ProductID, "good"}.topic(), fmt.Sprintf(update, "bad", "b"))
	forge(t, as("ABCDE12345/bad"), device{product.ProductID, "good"}.resultTopic(), `{"type":"delta"}`)
	forge(t, as("ABCDE12345/bad"), "ABCDE12345/good/event", `forged`)
	forge(t, as("batchtask-manager"), device{product.ProductID, "bad"}.topic(), fmt.Sprintf(update, "manager", "m")) // nor does it speak for devices
	manager := connect(t, as("batchtask-manager"), "manager", 1)
	manager.sendTo("ABCDE12345/good/event", "for the good one")
	manager.sendTo("ABCDE12345/bad/event", "for the bad one")

	// All that was sent before has arrived when this has.
	if got := parse(t, bad.ask("bad", fmt.Sprintf(update, "bad", "own"))); got.Payload.Version != 1 || string(got.ClientToken) != `"own"` {
		t.Errorf("version %d, token %s of a device's own update, want 1 and own", got.Payload.Version, got.ClientToken)
	}
	eventually(t, "the device gets its own messages", func() bool { return strings.Contains(heard(), "ABCDE12345/bad/event") })
	for topic := range strings.FieldsSeq(heard()) {
		if !strings.HasSuffix(topic, "ABCDE12345/bad") && topic != "ABCDE12345/bad/event" {
			t.Errorf("a device heard a message on %s", topic)
		}
	}
	if got := parse(t, good.ask("good", `{"type":"get","clientToken":"last"}`)); got.Payload.Version != 1 || string(got.ClientToken) != `"last"` {
		t.Errorf("version %d, token %s of the other device: it heard something, or somebody else wrote", got.Payload.Version, got.ClientToken)
	}
	if got := store.Shadow(t, product, "bad").Version; got != 1 {
		t.Errorf("version %d of the device that was spoken for, want 1", got)
	}
}

// forge publishes what is not allowed, on a connection of its own: the broker either
// acknowledges such a message and drops it, or closes the connection over it (MQTT
// 3.1.1, 3.3.5). It returns when the broker has done one or the other.
func forge(t *testing.T, url, topic, payload string) {
	t.Helper()
	lost := make(chan struct{})
	o := paho.NewClientOptions().AddBroker(url).SetClientID("forger").SetAutoReconnect(false)
	o.SetConnectionLostHandler(func(paho.Client, error) { close(lost) })
	c := paho.NewClient(o)
	if token := c.Connect(); !token.WaitTimeout(patience) || token.Error() != nil {
		t.Fatalf("connecting: %v", token.Error())
	}
	defer c.Disconnect(100)
	select {
	case <-c.Publish(topic, 1, false, payload).Done():
	case <-lost:
	case <-time.After(patience):
		t.Errorf("the broker does nothing about a message to %s", topic)
	}
}
