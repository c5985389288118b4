package simulator_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"batchtask.dev/operator/hack/simulator"
	"batchtask.dev/operator/internal/mqtt/mqtttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestFleet(t *testing.T) {
	broker := mqtttest.StartMosquitto(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	names := []string{"front-door", "back-door", "window"}
	fleet, err := simulator.Start(ctx, simulator.Options{
		BrokerURL: broker.URL(), ProductID: "P", Names: names, Topics: []string{"event", "news"}, Keep: 2, Concurrency: 2,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer fleet.Close()

	publish := publisher(t, broker.URL())
	for i := range 3 {
		publish("P/front-door/event", fmt.Sprint(i))
	}
	publish("P/front-door/other", "not for a device that does not subscribe to it")
	publish("Q/front-door/event", "not for a device of another product")
	publish("P/back-door/news", "n")
	publish("$shadow/operation/result/P/back-door", "{}")
	if err := fleet.Wait(ctx, []string{"front-door"}, 3); err != nil {
		t.Fatal(err)
	}
	if err := fleet.Wait(ctx, []string{"back-door"}, 2); err != nil {
		t.Fatal(err)
	}

	type received struct {
		Count int64
		Last  []simulator.Message
	}
	want := map[string]received{
		"front-door": {3, []simulator.Message{{"P/front-door/event", "1"}, {"P/front-door/event", "2"}}},
		"back-door":  {2, []simulator.Message{{"P/back-door/news", "n"}, {"$shadow/operation/result/P/back-door", "{}"}}},
		"window":     {},
		"unknown":    {},
	}
	for name, want := range want {
		if diff := cmp.Diff(want, received{fleet.Count(name), fleet.Received(name)}); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	if fleet.Total() != 5 {
		t.Errorf("all devices have received %d messages, want 5", fleet.Total())
	}

	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	err = fleet.Wait(short, names, 1)
	if err == nil || !strings.Contains(err.Error(), `1 of 3 devices, "window" among them`) {
		t.Errorf("waiting for a device that gets nothing: error %v", err)
	}
}

// A device whose connection breaks must not be deaf afterwards.
func TestReconnect(t *testing.T) {
	broker := mqtttest.StartMosquitto(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	fleet, err := simulator.Start(ctx, simulator.Options{BrokerURL: broker.URL(), ProductID: "P", Names: []string{"d"}})
	if err != nil {
		t.Fatal(err)
	}
	defer fleet.Close()
	broker.Restart()
	publish := publisher(t, broker.URL())
	for fleet.Count("d") == 0 {
		publish("P/d/event", "x")
		if ctx.Err() != nil {
			t.Fatal("the device has not come back")
		}
	}
}

func TestStartFails(t *testing.T) {
	broker := mqtttest.NewFaultBroker(t, mqtttest.Faults{RefuseConnect: true})
	for _, test := range []struct {
		name    string
		options simulator.Options
		want    string
	}{
		{"refused", simulator.Options{BrokerURL: broker.URL(), ProductID: "P", Names: []string{"d"}}, `connecting device "d"`},
		{"twice", simulator.Options{BrokerURL: broker.URL(), ProductID: "P", Names: []string{"d", "d"}}, `two simulated devices are named "d"`},
		{"no names", simulator.Options{BrokerURL: broker.URL(), ProductID: "P"}, "need a broker, a product and names"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := simulator.Start(t.Context(), test.options)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
		})
	}
}

// publisher returns a function that publishes and waits for the acknowledgement.
func publisher(t *testing.T, url string) func(topic, payload string) {
	t.Helper()
	client := paho.NewClient(paho.NewClientOptions().AddBroker(url).SetClientID("publisher"))
	if token := client.Connect(); !token.WaitTimeout(time.Minute) || token.Error() != nil {
		t.Fatalf("connecting: %v", token.Error())
	}
	t.Cleanup(func() { client.Disconnect(100) })
	return func(topic, payload string) {
		t.Helper()
		if token := client.Publish(topic, 1, false, payload); !token.WaitTimeout(time.Minute) || token.Error() != nil {
			t.Fatalf("publishing to %s: %v", topic, token.Error())
		}
	}
}
