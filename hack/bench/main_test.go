package main

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestChoose(t *testing.T) {
	t.Setenv("BENCH", "quick")
	size, err := readScale()
	if err != nil {
		t.Fatal(err)
	}
	all := setups(size)
	if chosen, err := choose(all, nil); err != nil || len(chosen) != len(all) {
		t.Errorf("without names %d of %d cases are chosen, error %v", len(chosen), len(all), err)
	}
	chosen, err := choose(all, []string{"postgres", "small"})
	var names []string
	for _, s := range chosen {
		names = append(names, s.name)
	}
	if want := []string{"small", "postgres", "postgres"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("chosen are %v, error %v, want %v", names, err, want)
	}
	_, err = choose(all, []string{"small", "smal"})
	if err == nil || !strings.Contains(err.Error(), "no case smal; there are publish, small, shim, shadow, postgres") {
		t.Errorf("an unknown case: %v", err)
	}
}

func TestReadScale(t *testing.T) {
	for name, want := range map[string]int{"quick": 50_000, "": 200_000, "full": 1_000_000} {
		t.Setenv("BENCH", name)
		if size, err := readScale(); err != nil || size.postgresDevices != want {
			t.Errorf("BENCH=%q: %d devices in PostgreSQL, error %v, want %d", name, size.postgresDevices, err, want)
		}
	}
	t.Setenv("BENCH", "fast")
	if _, err := readScale(); err == nil || !strings.Contains(err.Error(), `BENCH is "fast": must be quick, full or empty`) {
		t.Errorf("BENCH=fast: %v", err)
	}
	t.Setenv("BENCH", "quick")
	t.Setenv("HOSTILE_FOR", "45s")
	if size, err := readScale(); err != nil || size.hostilePhase != 45*time.Second {
		t.Errorf("HOSTILE_FOR=45s: phases of %v, error %v", size.hostilePhase, err)
	}
	for _, text := range []string{"45", "-1s", "1ms"} {
		t.Setenv("HOSTILE_FOR", text)
		if _, err := readScale(); err == nil || !strings.Contains(err.Error(), "HOSTILE_FOR is") {
			t.Errorf("HOSTILE_FOR=%s: %v", text, err)
		}
	}
}
