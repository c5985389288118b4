package mqtt

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/google/go-cmp/cmp"

	"batchtask.dev/operator/internal/mqtt/mqtttest"
)

// listener collects what a subscriber receives.
type listener struct {
	*Subscriber
	stop func()
	mu   sync.Mutex
	got  []*Inbound
}

// listen runs a subscriber to all topics until the test ends.
func listen(t *testing.T, opts SubscriberOptions) *listener {
	t.Helper()
	l := &listener{}
	opts.ClientID, opts.Filter = "listener", "a/#"
	// A connection that is given up because this machine is slow would have messages come again.
	opts.WriteTimeout = time.Minute
	if opts.ConnectTimeout == 0 {
		opts.ConnectTimeout = time.Minute
	}
	if opts.Receive == nil {
		opts.Receive = func(m *Inbound) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.got = append(l.got, m)
		}
	}
	var err error
	if l.Subscriber, err = NewSubscriber(opts); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- l.Start(ctx) }()
	l.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Start: %v", err)
		}
	})
	t.Cleanup(l.stop)
	return l
}

// messages waits for n messages and returns them.
func (l *listener) messages(t *testing.T, n int) []*Inbound {
	t.Helper()
	var got []*Inbound
	eventually(t, fmt.Sprint(n, " messages"), func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		got = append([]*Inbound(nil), l.got...)
		return len(got) >= n
	})
	return got
}

func contents(messages []*Inbound) string {
	var all []string
	for _, m := range messages {
		all = append(all, string(m.Payload()))
	}
	return strings.Join(all, " ")
}

// publisher publishes with QoS 1.
func publisher(t *testing.T, url string) func(topic, payload string) {
	t.Helper()
	c := paho.NewClient(paho.NewClientOptions().AddBroker(url).SetClientID("sender"))
	if token := c.Connect(); !token.WaitTimeout(time.Minute) || token.Error() != nil {
		t.Fatalf("connecting: %v", token.Error())
	}
	t.Cleanup(func() { c.Disconnect(100) })
	return func(topic, payload string) {
		t.Helper()
		if token := c.Publish(topic, 1, false, payload); !token.WaitTimeout(time.Minute) || token.Error() != nil {
			t.Fatalf("publishing to %s: %v", topic, token.Error())
		}
	}
}

// Acknowledgements reach the broker in the order of the messages, so that what comes
// again is the end of what has come.
func TestAcknowledgementsInOrder(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	broker := mqtttest.StartMosquitto(t, mqtttest.WithConfig("log_dest file "+log, "log_type debug"))
	l := listen(t, SubscriberOptions{Options: Options{URL: broker.URL()}})
	eventually(t, "subscribed", l.Connected)
	send := publisher(t, broker.URL())
	for i := range 6 {
		send("a/b", fmt.Sprint(i))
	}
	got := l.messages(t, 6)
	if all := contents(got); all != "0 1 2 3 4 5" {
		t.Fatalf("received %s", all)
	}
	for _, i := range []int{5, 3, 0, 1} {
		got[i].Ack()
	}
	// Closing waits for them no longer than a moment.
	eventually(t, "the broker has both acknowledgements that are due", func() bool {
		text, err := os.ReadFile(log)
		return err == nil && strings.Count(string(text), "Received PUBACK from listener") == 2
	})
	l.stop()
	select {
	case <-got[0].Lost():
	default:
		t.Error("the connection has ended, and the messages do not know")
	}
	if err := got[2].Reply("a/c", []byte("x")); err == nil {
		t.Error("replied on a connection that has ended")
	}
	got[2].Ack() // too late

	again := listen(t, SubscriberOptions{Options: Options{URL: broker.URL()}})
	send("a/b", "new")
	if all := contents(again.messages(t, 5)); all != "2 3 4 5 new" {
		t.Errorf("received again %s, want 2 3 4 5 new", all)
	}
}

// A reply is in the stream before the acknowledgement that follows it.
func TestReply(t *testing.T) {
	broker := mqtttest.StartMosquitto(t)
	replies := subscribe(t, broker.URL())
	l := listen(t, SubscriberOptions{
		Options: Options{URL: broker.URL()},
		Receive: func(m *Inbound) {
			if err := m.Reply("reply/"+string(m.Payload()), []byte("x")); err != nil {
				t.Errorf("Reply: %v", err)
			}
			m.Ack()
		},
	})
	eventually(t, "subscribed", l.Connected)
	send := publisher(t, broker.URL())
	for i := range 100 {
		send("a/b", fmt.Sprint(i))
	}
	eventually(t, "all replies", func() bool { topics, _ := replies.sum(); return topics == 101 })
}

func TestSubscriptionRefused(t *testing.T) {
	broker := mqtttest.NewFaultBroker(t, mqtttest.Faults{RefuseSubscribe: true})
	l := listen(t, SubscriberOptions{Options: Options{URL: broker.URL()}})
	eventually(t, "it tries again", func() bool { return len(broker.Connects()) > 2 })
	if l.Connected() {
		t.Error("connected without a subscription")
	}
	broker.SetFaults(mqtttest.Faults{})
	eventually(t, "subscribed", l.Connected)
}

// A broker that says nothing any more is left.
func TestSilentBroker(t *testing.T) {
	broker := mqtttest.NewFaultBroker(t, mqtttest.Faults{})
	l := listen(t, SubscriberOptions{Options: Options{URL: broker.URL(), KeepAlive: time.Second, ConnectTimeout: time.Second}})
	eventually(t, "subscribed", l.Connected)
	broker.SetFaults(mqtttest.Faults{StopReading: true})
	eventually(t, "the connection is given up", func() bool { return !l.Connected() })
	broker.SetFaults(mqtttest.Faults{})
	eventually(t, "subscribed again", l.Connected)
}

func TestSubscriberPasswordChange(t *testing.T) {
	dir := t.TempDir()
	user, password := write(t, dir, "user", "u\n"), write(t, dir, "password", "first\n")
	broker := mqtttest.NewFaultBroker(t, mqtttest.Faults{})
	l := listen(t, SubscriberOptions{Options: Options{URL: broker.URL(), UsernameFile: user, PasswordFile: password, FileCheckInterval: 20 * time.Millisecond}})
	eventually(t, "subscribed", l.Connected)
	write(t, dir, "password", "second\n")
	eventually(t, "the second password is used", func() bool { return len(broker.Connects()) == 2 && l.Connected() })
	want := []mqtttest.Credentials{{ClientID: "listener", Username: "u", Password: "first"}, {ClientID: "listener", Username: "u", Password: "second"}}
	if diff := cmp.Diff(want, broker.Connects()); diff != "" {
		t.Errorf("connects (-want +got):\n%s", diff)
	}
}

func TestSubscriberOptions(t *testing.T) {
	receive := func(*Inbound) {}
	for _, tt := range []struct {
		opts SubscriberOptions
		want string
	}{
		{SubscriberOptions{ClientID: "c", Filter: "f", Receive: receive}, "URL is empty"},
		{SubscriberOptions{Options: Options{URL: "tcp://b"}, Filter: "f", Receive: receive}, "ClientID is"},
		{SubscriberOptions{Options: Options{URL: "tcp://b"}, ClientID: "a b", Filter: "f", Receive: receive}, "ClientID is"},
		{SubscriberOptions{Options: Options{URL: "tcp://b"}, ClientID: "c", Receive: receive}, "Filter is empty"},
		{SubscriberOptions{Options: Options{URL: "tcp://b"}, ClientID: "c", Filter: "f"}, "Receive is nil"},
		{SubscriberOptions{Options: Options{URL: "tcp://b", CertFile: "c"}, ClientID: "c", Filter: "f", Receive: receive}, "CertFile and KeyFile"},
	} {
		if _, err := NewSubscriber(tt.opts); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("error %v, want one with %q", err, tt.want)
		}
	}
}
