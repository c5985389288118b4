package main

import (
	"testing"

	"github.com/go-logr/logr"
	"github.com/spf13/pflag"
)

// A wrong setting ends the manager at its start, with one line that names it.
func TestWrongSettings(t *testing.T) {
	const broker = "--mqtt-url=tcp://broker:1883"
	for _, tc := range []struct {
		name string
		args []string
		want string
	}{
		{"no broker", nil, "--mqtt-url (or MQTT_URL) is required: the URL of the MQTT broker, such as tcp://mosquitto:1883"},
		{"no namespace", []string{broker}, "--namespace (or POD_NAMESPACE) is required with --webhook-certs=self: the namespace of the Secret"},
		{"unknown source of certificates", []string{broker, "--webhook-certs=none"}, "--webhook-certs=none: must be self or files"},
		{"no namespace for the Lease", []string{broker, "--webhooks=false", "--leader-elect"}, "--namespace (or POD_NAMESPACE) is required with --leader-elect: the namespace of the Lease"},
		{"port", []string{broker, "--webhooks=false", "--webhook-port=70000"}, "--webhook-port=70000: must be 1 to 65535"},
		{"resend limit", []string{broker, "--webhooks=false", "--resend-limit=-1"}, "--resend-limit=-1: must be 0 (as --publish-window) to 1000000"},
		{"no time at all", []string{broker, "--webhooks=false", "--drain-timeout=0s"}, "--drain-timeout=0s: must be positive"},
		{"negative skew", []string{broker, "--webhooks=false", "--schedule-skew=-1s"}, "--schedule-skew=-1s: must not be negative"},
		{"lease", []string{broker, "--webhooks=false", "--leader-elect-renew-deadline=20s"}, "--leader-elect-lease-duration=15s must be longer than --leader-elect-renew-deadline=20s, and that at least 2.5 times --leader-elect-retry-period=2s"},
		{"lease that is renewed too seldom", []string{broker, "--webhooks=false", "--leader-elect-retry-period=5s"}, "--leader-elect-lease-duration=15s must be longer than --leader-elect-renew-deadline=10s, and that at least 2.5 times --leader-elect-retry-period=5s"},
		{"lease of half a second", []string{broker, "--webhooks=false", "--leader-elect-lease-duration=14500ms"}, "--leader-elect-lease-duration=14.5s: must be whole seconds, as a Lease keeps them, and at least 1s"},
		{"good", []string{broker, "--webhooks=false"}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv("MQTT_URL", "")
			t.Setenv("POD_NAMESPACE", "")
			opts := &managerOptions{}
			flags := pflag.NewFlagSet("manager", pflag.ContinueOnError)
			opts.bind(flags)
			if err := flags.Parse(tc.args); err != nil {
				t.Fatal(err)
			}
			got := ""
			if err := opts.validate(); err != nil {
				got = err.Error()
			}
			if got != tc.want {
				t.Errorf("got  %q\nwant %q", got, tc.want)
			}
		})
	}
}

func TestWrongBroker(t *testing.T) {
	opts := &managerOptions{}
	opts.mqtt.URL = "http://broker"
	if _, err := opts.newPool(logr.Discard()); err == nil {
		t.Error("a broker behind http:// was accepted")
	} else {
		t.Log(err)
	}
}
