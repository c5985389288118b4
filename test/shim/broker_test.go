package shim_test

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"batchtask.dev/operator/hack/simulator"
	"batchtask.dev/operator/internal/mqtt/mqtttest"
	"batchtask.dev/operator/test/system"
)

// Without a broker the actions that need one do not exist; shadows can be read.
func TestNoBroker(t *testing.T) {
	s := system.Run(t)
	f := startFront(t, s, settings{})
	c := f.newCaller(t)
	device := c.newDevice(t, "door-1", nil)
	for _, params := range []map[string]string{
		c.about("UpdateDeviceShadow", "door-1", map[string]string{"state": `{"desired":{}}`}),
		c.about("Publish", "door-1", map[string]string{"topic": c.productID + "/door-1/event", "payload": "x"}),
		{"Action": "Publish"},
	} {
		if got := c.v2(t, "POST", params); got["code"] != 4000.0 || got["codeDesc"] != "InvalidAction" {
			t.Errorf("%s is answered %v", params["Action"], got)
		}
	}
	for _, action := range []string{"UpdateDeviceShadow", "PublishMessage"} {
		wantErrorV3(t, c.v3(t, action, c.aboutV3(t, "door-1", nil)), "InvalidAction", "Action: ")
	}
	if got := c.v2(t, "GET", c.about("GetDeviceShadow", "door-1", nil)); got["code"] != 0.0 {
		t.Errorf("GetDeviceShadow is answered %v", got)
	}
	if err := f.Env.Client.Get(t.Context(), keyOf(device), device); err != nil || device.Status.Shadow != nil {
		t.Errorf("the shadow was changed: %+v, error %v", device.Status.Shadow, err)
	}
}

// A broker that is away is an internal error in bounded time. The change to a shadow
// stands then; made again, it is told to the device.
func TestBrokerAway(t *testing.T) {
	s := system.Run(t)
	broker := mqtttest.StartMosquitto(t)
	const timeout = 3 * time.Second
	f := startFront(t, s, settings{broker: broker.URL(), timeout: timeout})
	c := f.newCaller(t)
	device := c.newDevice(t, "door-1", nil)
	publish := c.about("Publish", "door-1", map[string]string{"topic": c.productID + "/door-1/event", "payload": "x"})
	update := c.about("UpdateDeviceShadow", "door-1", map[string]string{"state": `{"desired":{"a":1}}`})
	system.WaitFor(t, "the broker to take a message", func() (bool, any) {
		got := c.v2(t, "POST", publish)
		return got["code"] == 0.0, got
	})
	broker.Kill()
	fails := func(params map[string]string, message string) {
		t.Helper()
		started := time.Now()
		if got := c.v2(t, "POST", params); got["code"] != 6000.0 || got["message"] != message {
			t.Errorf("%s is answered %v", params["Action"], got)
		}
		if took := time.Since(started); took > time.Minute {
			t.Errorf("%s took %s with a time-out of %s", params["Action"], took, timeout)
		}
	}
	fails(publish, "（7001）内部服务器错误，请联系技术人员")
	// On a busy machine the time may be over before the change is made.
	calls := int64(0)
	system.WaitUpTo(t, time.Minute, "the change to stand", func() (bool, any) {
		calls++
		fails(update, "（5100）内部服务器错误，请联系技术人员")
		err := f.Env.Client.Get(t.Context(), keyOf(device), device)
		return err == nil && device.Status.Shadow != nil, err
	})
	if got := device.Status.Shadow; got.Desired != `{"a":1}` || got.Version < 1 || got.Version > calls {
		t.Errorf("the shadow is %+v after %d calls", got, calls)
	}
	broker.Restart()
	fleet := c.connect(t, broker.URL(), "door-1")
	version := int64(0)
	system.WaitFor(t, "the update to be made again", func() (bool, any) {
		got := c.v2(t, "POST", update)
		if told, ok := got["data"].(map[string]any); ok {
			v, _ := told["payload"].(map[string]any)["version"].(float64)
			version = int64(v)
		}
		return got["code"] == 0.0, got
	})
	system.WaitFor(t, "its delta", func() (bool, any) {
		// Not the last: that of an earlier call may come late, over another connection.
		got := fleet.Received("door-1")
		return slices.ContainsFunc(got, func(m simulator.Message) bool {
			return strings.Contains(m.Payload, `"version":`+strconv.FormatInt(version, 10)+",")
		}), got
	})
}

// A message that makes the broker hang up is an internal error of its own call. What
// others send meanwhile arrives.
func TestMessageThatBrokerRefuses(t *testing.T) {
	s := system.Run(t)
	broker := mqtttest.NewFaultBroker(t, mqtttest.Faults{Drop: func(topic string) bool { return strings.Contains(topic, "/bad/") }})
	f := startFront(t, s, settings{broker: broker.URL()})
	c, other := f.newCaller(t), f.newCaller(t)
	publish := func(c *caller, device string) map[string]any {
		return c.v2(t, "POST", c.about("Publish", device, map[string]string{"topic": c.productID + "/" + device + "/event", "payload": "x"}))
	}
	c.newDevice(t, "bad", nil)
	for _, of := range []*caller{c, other} {
		of.newDevice(t, "good", nil)
	}
	refused := make(chan map[string]any, 1)
	go func() { refused <- publish(c, "bad") }()
	for answered := false; !answered; {
		for _, of := range []*caller{c, other} {
			if got := publish(of, "good"); got["code"] != 0.0 {
				t.Errorf("a good message is answered %v", got)
			}
		}
		select {
		case got := <-refused:
			answered = true
			if got["code"] != 6000.0 || got["message"] != "（7001）内部服务器错误，请联系技术人员" {
				t.Errorf("the refused message is answered %v", got)
			}
		default:
		}
	}
	if log := f.log.String(); !strings.Contains(log, "broker ends the connection when it is sent this message") {
		t.Errorf("the log does not say why:\n%s", log)
	}
}
