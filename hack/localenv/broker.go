package localenv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os/exec"
	"strings"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"
)

// BrokerKind says which broker to start.
type BrokerKind string

const (
	// BrokerAny is mosquitto where it is installed, else the embedded one.
	BrokerAny BrokerKind = ""
	// BrokerMosquitto is mosquitto, which must be installed.
	BrokerMosquitto BrokerKind = "mosquitto"
	// BrokerEmbedded is mochi-mqtt, inside this process.
	BrokerEmbedded BrokerKind = "embedded"
)

// startBroker returns the URL of the broker and what to tell people about it.
func (s *session) startBroker(ctx context.Context) (brokerURL, description string, err error) {
	if s.MQTTURL != "" {
		return useBroker(ctx, s.MQTTURL)
	}
	address, note, err := s.brokerListener().address(ctx)
	if err != nil {
		return "", "", err
	}
	mosquitto := findMosquitto()
	switch s.Broker {
	case BrokerAny:
	case BrokerEmbedded:
		mosquitto = ""
	case BrokerMosquitto:
		if mosquitto == "" {
			return "", "", errors.New("mosquitto is not installed")
		}
	default:
		return "", "", fmt.Errorf("broker %q: must be %s or %s, or empty for any", s.Broker, BrokerMosquitto, BrokerEmbedded)
	}
	kind := "mosquitto"
	if mosquitto == "" {
		kind = "mochi-mqtt, embedded, as mosquitto is not installed,"
		if s.Broker == BrokerEmbedded {
			kind = "mochi-mqtt, embedded,"
		}
		err = s.startEmbedded(address)
	} else {
		err = s.startMosquitto(ctx, mosquitto, address)
	}
	if err != nil {
		return "", "", err
	}
	return "tcp://" + reachable(address), kind + " at " + address + note, nil
}

func (s *session) brokerListener() listener {
	return listener{
		name: "the broker", wanted: s.MQTTAddress, usual: DefaultMQTTAddress,
		advice: "DEV_MQTT_ADDR sets an address, MQTT_URL names a broker to use",
	}
}

// findMosquitto returns the path of mosquitto, or "". Debian installs it where
// the search path of a user does not look.
func findMosquitto() string {
	for _, name := range []string{"mosquitto", "/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto", "/opt/homebrew/sbin/mosquitto"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}

func (s *session) startMosquitto(ctx context.Context, path, address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("the broker's address %q: %w", address, err)
	}
	config := s.path("mosquitto.conf")
	lines := []string{
		strings.TrimSpace("listener " + port + " " + host),
		"allow_anonymous true",
		"persistence false",
		"max_queued_messages 0", // no limit
		"set_tcp_nodelay true",
		"log_dest stderr",
		"log_type error", "log_type warning", "log_type notice",
		"connection_messages false",
		// Of effect only when started as root: mosquitto would change to another
		// user then, and the kernel forgets the wish to end it with its parent.
		"user root",
	}
	if err := writeFile(config, []byte(strings.Join(lines, "\n")+"\n")); err != nil {
		return err
	}
	return s.run(ctx, program{name: "mosquitto", path: path, args: []string{"-c", config}, ready: accepts(reachable(address))})
}

// startEmbedded runs a broker in this process. It takes everything from everyone.
func (s *session) startEmbedded(address string) error {
	server := mochi.New(&mochi.Options{
		Capabilities: embeddedCapabilities(),
		Logger:       slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err := server.AddHook(new(allowAll), nil); err != nil {
		return fmt.Errorf("setting up the embedded broker: %w", err)
	}
	if err := server.AddListener(listeners.NewTCP(listeners.Config{ID: "tcp", Address: address})); err != nil {
		return fmt.Errorf("the embedded broker cannot listen on %s: %w", address, err)
	}
	if err := server.Serve(); err != nil {
		return fmt.Errorf("starting the embedded broker: %w", err)
	}
	s.onStop(server.Close)
	return nil
}

// allowAll lets everyone do everything. The library's own hook for that comes
// with dependencies.
type allowAll struct{ mochi.HookBase }

// ID implements mochi.Hook.
func (*allowAll) ID() string { return "allow-all" }

// Provides implements mochi.Hook.
func (*allowAll) Provides(b byte) bool {
	return b == mochi.OnConnectAuthenticate || b == mochi.OnACLCheck
}

// OnConnectAuthenticate implements mochi.Hook.
func (*allowAll) OnConnectAuthenticate(*mochi.Client, packets.Packet) bool { return true }

// OnACLCheck implements mochi.Hook.
func (*allowAll) OnACLCheck(*mochi.Client, string, bool) bool { return true }

func embeddedCapabilities() *mochi.Capabilities {
	c := mochi.NewDefaultServerCapabilities()
	// It ends connections with more unacknowledged messages than this, though
	// MQTT 3.1.1 has no such limit and the manager sends as many as its window is.
	c.ReceiveMaximum = 65535
	c.MaximumInflight = 65535
	return c
}

// useBroker checks that somebody listens at brokerURL and adds the default port.
func useBroker(ctx context.Context, brokerURL string) (string, string, error) {
	u, err := url.Parse(brokerURL)
	if err != nil {
		// The error would show the URL, and that may hold a password.
		return "", "", errors.New("MQTT_URL is not a URL such as tcp://127.0.0.1:1883")
	}
	ports := map[string]string{"tcp": "1883", "mqtt": "1883", "ssl": "8883", "tls": "8883", "mqtts": "8883", "ws": "80", "wss": "443"}
	port, known := ports[u.Scheme]
	if !known || u.Hostname() == "" {
		return "", "", fmt.Errorf("MQTT_URL %s: must be a URL such as tcp://127.0.0.1:1883", u.Redacted())
	}
	if u.Port() == "" {
		u.Host = net.JoinHostPort(u.Hostname(), port)
	}
	if err := accepts(u.Host)(ctx); err != nil {
		return "", "", fmt.Errorf("the broker of MQTT_URL cannot be reached: %w", err)
	}
	return u.String(), u.Redacted() + ", from MQTT_URL", nil
}
