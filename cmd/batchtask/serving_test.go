package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// No line is left out, however many are alike, and none below the level is there.
func TestLogIsWhole(t *testing.T) {
	for _, tc := range []struct {
		args       string
		wantDetail bool
	}{
		{"", false},
		{"--zap-log-level=info", false},
		{"--zap-log-level=debug", true},
		{"--zap-log-level=2", true},
	} {
		t.Run(tc.args, func(t *testing.T) {
			opts, flags, written := &servingOptions{}, pflag.NewFlagSet("", pflag.ContinueOnError), &bytes.Buffer{}
			opts.bind(flags)
			if err := flags.Parse(strings.Fields(tc.args)); err != nil {
				t.Fatal(err)
			}
			opts.log.DestWriter = written
			log := opts.newLogger()
			const lines = 500
			for i := range lines {
				log.Info("Call", "n", i)
				log.V(1).Info("Detail", "n", i)
			}
			if got := strings.Count(written.String(), `"msg":"Call"`); got != lines {
				t.Errorf("%d lines of %d were written", got, lines)
			}
			want := 0
			if tc.wantDetail {
				want = lines
			}
			if got := strings.Count(written.String(), `"msg":"Detail"`); got != want {
				t.Errorf("%d lines of V(1) were written, want %d", got, want)
			}
		})
	}
}

// A caller that keeps to its rate is never refused for the memory of replays.
func TestMaxNonces(t *testing.T) {
	for _, tc := range []struct {
		args string
		want int
	}{
		{"", 1 << 16},
		{"--rate-limit=500 --rate-burst=1000", 500*600 + 1000},
		{"--rate-limit=0.5", 1 << 16},
		{"--clock-window=30m --rate-burst=7", 100*3600 + 7},
	} {
		opts, flags := &shimOptions{}, pflag.NewFlagSet("", pflag.ContinueOnError)
		opts.bind(flags)
		if err := flags.Parse(strings.Fields(tc.args)); err != nil {
			t.Fatal(err)
		}
		if got := opts.maxNonces(); got != tc.want {
			t.Errorf("%s: %d calls are remembered, want %d", tc.args, got, tc.want)
		}
	}
}
