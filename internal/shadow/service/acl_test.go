package service

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"batchtask.dev/operator/internal/mqtt/mqtttest"
)

// example is a mosquitto that runs as the example that is shipped says.
type example struct {
	*mqtttest.Mosquitto
	devices, operator int
}

// startExample runs it with these devices of the product, and the operator's users. All
// passwords are "secret".
func startExample(t *testing.T, names ...string) *example {
	t.Helper()
	tool, err := exec.LookPath("mosquitto_passwd")
	if err != nil {
		t.Skip("mosquitto_passwd is not installed")
	}
	const shipped = "../../../config/mosquitto/"
	dir := t.TempDir()
	users := map[string][]string{"operator": {"batchtask-manager", "batchtask-shim", "batchtask-shadow"}}
	for _, name := range names {
		users["devices"] = append(users["devices"], product.ProductID+"/"+name)
	}
	for side, of := range users {
		passwords := filepath.Join(dir, side+".passwords")
		for i, user := range of {
			args := []string{"-b", passwords, user, "secret"}
			if i == 0 {
				args = append([]string{"-c"}, args...)
			}
			if out, err := exec.CommandContext(t.Context(), tool, args...).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", tool, err, out)
			}
		}
		acl, err := os.ReadFile(shipped + side + ".acl")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, side+".acl"), acl, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config, err := os.ReadFile(shipped + "mosquitto.conf")
	if err != nil {
		t.Fatal(err)
	}
	e := &example{devices: mqtttest.FreePort(t), operator: mqtttest.FreePort(t)}
	replaced := strings.NewReplacer(
		"/mosquitto/config/", dir+"/", "/mosquitto/data/", t.TempDir()+"/",
		"listener 8883", fmt.Sprintf("listener %d 127.0.0.1", e.devices), "listener 1883", fmt.Sprintf("listener %d 127.0.0.1", e.operator),
		// Or what a test kills may have forgotten anything.
		"autosave_interval 30", "autosave_interval 1",
	).Replace(string(config))
	// Started as root, it would change to a user that cannot read the test's files.
	e.Mosquitto = mqtttest.StartMosquitto(t, mqtttest.WithConfigFile(replaced+"\nuser root\nlog_type none\n", e.devices, e.operator))
	return e
}

func (e *example) device(name string) string {
	return fmt.Sprintf("tcp://%s%%2F%s:secret@127.0.0.1:%d", product.ProductID, name, e.devices)
}

func (e *example) user(name string) string {
	return fmt.Sprintf("tcp://%s:secret@127.0.0.1:%d", name, e.operator)
}

// With the example that is shipped a device reaches its own shadow and no other.
func TestAccessList(t *testing.T) {
	broker := startExample(t, "good", "bad")
	store := memory(t, "good", "bad")
	start(t, broker.user("batchtask-shadow"), store, Options{})
	good := connect(t, broker.device("good"), "good", 1)
	bad := connect(t, broker.device("bad"), "bad", 1)
	heard := bad.hear("#", "$shadow/#", "$shadow/operation/+/+", "$shadow/operation/result/ABCDE12345/good", "ABCDE12345/+/+", "ABCDE12345/good/event")

	update := `{"type":"update","state":{"reported":{"by":%q}},"clientToken":%q}`
	if got := parse(t, good.ask("good", fmt.Sprintf(update, "good", "g"))); got.Payload.Version != 1 {
		t.Errorf("version %d of a device's own update, want 1", got.Payload.Version)
	}
	// mosquitto acknowledges what it does not let through.
	bad.sendTo(device{product.ProductID, "good"}.topic(), fmt.Sprintf(update, "bad", "b"))
	bad.sendTo(device{product.ProductID, "good"}.resultTopic(), `{"type":"delta"}`)
	bad.sendTo("ABCDE12345/good/event", `forged`)
	bad.sendTo("ABCDE12345/bad/event", `forged`)                                                                              // its own topic, and not for it to write
	forge(t, broker.user("batchtask-manager"), device{product.ProductID, "bad"}.topic(), fmt.Sprintf(update, "manager", "m")) // nor does it speak for devices
	forge(t, broker.user("batchtask-shim"), device{product.ProductID, "bad"}.topic(), fmt.Sprintf(update, "shim", "m"))
	if got := heard(); strings.Contains(got, "event") {
		t.Errorf("a device heard what a device had forged: %s", got)
	}
	manager := connect(t, broker.user("batchtask-manager"), "manager", 1)
	manager.sendTo("ABCDE12345/good/event", "for the good one")
	manager.sendTo("ABCDE12345/bad/event", "for the bad one")
	front := connect(t, broker.user("batchtask-shim"), "front", 1)
	front.sendTo("ABCDE12345/bad/front", "for the bad one")

	// All that was sent before has arrived when this has.
	if got := parse(t, bad.ask("bad", fmt.Sprintf(update, "bad", "own"))); got.Payload.Version != 1 || string(got.ClientToken) != `"own"` {
		t.Errorf("version %d, token %s of a device's own update, want 1 and own", got.Payload.Version, got.ClientToken)
	}
	eventually(t, "the device gets its own messages", func() bool {
		return strings.Contains(heard(), "ABCDE12345/bad/event") && strings.Contains(heard(), "ABCDE12345/bad/front")
	})
	for topic := range strings.FieldsSeq(heard()) {
		if !strings.HasSuffix(topic, "ABCDE12345/bad") && !strings.HasPrefix(topic, "ABCDE12345/bad/") {
			t.Errorf("a device heard a message on %s", topic)
		}
	}
	front.sendTo(device{product.ProductID, "good"}.resultTopic(), `{"type":"delta"}`)
	if got := parse(t, good.answer("good")); got.Result != 0 {
		t.Errorf("the HTTP front's delta came as %+v", got)
	}
	if got := parse(t, good.ask("good", `{"type":"get","clientToken":"last"}`)); got.Payload.Version != 1 || string(got.ClientToken) != `"last"` {
		t.Errorf("version %d, token %s of the other device: it heard something, or somebody else wrote", got.Payload.Version, got.ClientToken)
	}
	if got := store.Shadow(t, product, "bad").Version; got != 1 {
		t.Errorf("version %d of the device that was spoken for, want 1", got)
	}
}

// A device that says the service's client ID takes over no session and destroys nothing
// that waits in it; and its password opens no other door.
func TestSessionOfTheService(t *testing.T) {
	broker := startExample(t, "good", "bad")
	store := memory(t, "good", "bad")
	service := broker.user("batchtask-shadow")
	tap := startTap(t, fmt.Sprintf("tcp://127.0.0.1:%d", broker.operator))
	s := start(t, strings.Replace(tap.url, "//", "//batchtask-shadow:secret@", 1), store, Options{})
	steal := func(url string) error {
		o := paho.NewClientOptions().AddBroker(url).SetClientID(DefaultClientID).SetCleanSession(true).SetAutoReconnect(false)
		c := paho.NewClient(o)
		token := c.Connect()
		if !token.WaitTimeout(patience) {
			t.Fatal("no answer of the broker")
		}
		if token.Error() == nil {
			c.Disconnect(100)
		}
		return token.Error()
	}
	good := connect(t, broker.device("good"), "good", 1)
	if err := steal(broker.device("bad")); err != nil {
		t.Errorf("connecting with another client ID: %v", err) // it is let in, as itself
	}
	if err := steal(strings.Replace(broker.device("bad"), fmt.Sprint(broker.devices), fmt.Sprint(broker.operator), 1)); err == nil {
		t.Error("a device was let in on the operator's listener")
	}
	if err := steal(strings.Replace(service, fmt.Sprint(broker.operator), fmt.Sprint(broker.devices), 1)); err == nil {
		t.Error("an operator's user was let in on the devices' listener")
	}
	if got := parse(t, good.ask("good", `{"type":"update","state":{"reported":{"a":1}}}`)); got.Payload.Version != 1 {
		t.Errorf("version %d, want 1", got.Payload.Version)
	}
	if n := tap.connects.Load(); n != 1 {
		t.Errorf("the service has connected %d times, want once", n)
	}
	// What waits while no service is there is not lost, also over a restart of the broker.
	s.stop()
	tap.settled(t)
	good.send("good", `{"type":"update","state":{"reported":{"a":2}}}`)
	if err := steal(broker.device("bad")); err != nil {
		t.Error(err)
	}
	<-time.After(3 * time.Second) // it saves each second
	broker.Restart()
	start(t, service, store, Options{})
	eventually(t, "what has waited is carried out", func() bool { return store.Shadow(t, product, "good").Version == 2 })
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
