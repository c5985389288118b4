package main

import (
	"bytes"
	"regexp"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDeviceNames(t *testing.T) {
	names := deviceNames(1000)
	count := func(filter string) (n int) {
		re := regexp.MustCompile(filter)
		for _, name := range names {
			if re.MatchString(name) {
				n++
			}
		}
		return n
	}
	unique := map[string]bool{}
	for _, name := range names {
		unique[name] = true
	}
	got := []int{len(names), len(unique), count("door$"), count("^door"), count(`^[a-zA-Z0-9:_-]{1,48}$`)}
	// "^door" has one less: of the four samples it matches door-1 alone.
	if diff := cmp.Diff([]int{1000, 1000, 500, 499, 1000}, got); diff != "" {
		t.Errorf("names, different ones, door$, ^door, legal ones (-want +got):\n%s", diff)
	}
}

func TestDevicesThatKeepShadows(t *testing.T) {
	for devices, want := range map[int]string{10: "all", maxShadows: "all", maxShadows + 1: "the first 1000 of them"} {
		if got := (&settings{devices: devices}).howMany(); got != want {
			t.Errorf("of %d devices %q look after their shadows, want %q", devices, got, want)
		}
	}
}

func TestBars(t *testing.T) {
	full, half, empty := "██████████████████████████████", "███████████████░░░░░░░░░░░░░░░", "░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░"
	steps := [][]bar{
		{{name: "a", phase: "Waiting"}, {name: "b", phase: "Processing", done: 1, matched: 2}},
		{{name: "a", phase: "Waiting"}, {name: "b", phase: "Failed", done: 1, failed: 1, matched: 2}},
	}
	for _, test := range []struct {
		name     string
		terminal bool
		want     string
	}{
		{
			"a line for each change", false,
			"  a            " + empty + "    0/0    Waiting\n" +
				"  b            " + half + "    1/2    Processing\n" +
				"  b            " + full + "    1/2    Failed\n",
		},
		{
			"redrawn on a terminal", true,
			"\r\x1b[K  a            " + empty + "    0/0    Waiting\n" +
				"\r\x1b[K  b            " + half + "    1/2    Processing\n" +
				"\x1b[2A" +
				"\r\x1b[K  a            " + empty + "    0/0    Waiting\n" +
				"\r\x1b[K  b            " + full + "    1/2    Failed\n",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv("NO_COLOR", "1")
			var got bytes.Buffer
			b := &bars{out: newOutput(&got, test.terminal)}
			for _, step := range steps {
				b.draw(step)
			}
			if diff := cmp.Diff(test.want, got.String()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
