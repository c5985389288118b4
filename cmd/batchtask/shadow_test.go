package main

import (
	"testing"

	"github.com/spf13/pflag"
)

func TestWrongShadowSettings(t *testing.T) {
	const broker = "--mqtt-url=tcp://broker:1883"
	for _, tc := range []struct {
		name string
		args []string
		want string
	}{
		{"no broker", nil, "--mqtt-url (or MQTT_URL) is required: the URL of the MQTT broker, such as tcp://mosquitto:1883"},
		{"no namespace for the Lease", []string{broker, "--leader-elect"}, "--namespace (or POD_NAMESPACE) is required with --leader-elect: the namespace of the Lease"},
		{"group and Lease", []string{broker, "--leader-elect", "--namespace=n", "--mqtt-shared-group=g"}, "--mqtt-shared-group is set with --leader-elect: only one replica would subscribe"},
		{"workers", []string{broker, "--workers=0"}, "--workers=0: must be at least 1"},
		{"queue", []string{broker, "--queue-length=0"}, "--queue-length=0: must be at least 1"},
		{"rate", []string{broker, "--device-rate=0"}, "--device-rate=0: must be more than 0"},
		{"no number", []string{broker, "--device-rate=NaN"}, "--device-rate=NaN: must be more than 0"},
		{"burst", []string{broker, "--device-burst=-1"}, "--device-burst=-1: must be at least 1"},
		{"retries longer than the broker is patient", []string{broker, "--retry-time=1m"}, "--retry-time=1m0s: must be positive and at most 30s, the time after which the broker wants to hear something"},
		{"no time to finish", []string{broker, "--drain-timeout=0s"}, "--drain-timeout=0s: must be positive"},
		{"good", []string{broker}, ""},
		{"good group", []string{broker, "--mqtt-shared-group=g", "--mqtt-client-id=pod-1"}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv("MQTT_URL", "")
			t.Setenv("POD_NAMESPACE", "")
			opts := &shadowOptions{}
			flags := pflag.NewFlagSet("shadow", pflag.ContinueOnError)
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
