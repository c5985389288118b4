package main

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

// A manager whose metrics cannot be read, or lack the number, has no figure of it.
func TestProcessMetric(t *testing.T) {
	text := "# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total 12.5\nprocess_resident_memory_bytes 1.048576e+06\n"
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(text)) }))
	defer server.Close()
	if got, err := processMetric(t.Context(), server.URL, processorMetric); err != nil || got != 12.5 {
		t.Errorf("read %v, %v, want 12.5", got, err)
	}
	if got := watchMemory(t.Context(), server.URL)(); got.err != nil || got.value != 1 {
		t.Errorf("the peak is %+v, want 1 MiB", got)
	}
	silent := httptest.NewServer(http.NotFoundHandler())
	defer silent.Close()
	if got, err := processMetric(t.Context(), silent.URL, processorMetric); err == nil {
		t.Errorf("without metrics %v is read", got)
	}
	peak := newFigure("peak", "MiB", watchMemory(t.Context(), silent.URL)()).aiming(valueAtMost)
	if got := peak.verdict(); got != notMeasured {
		t.Errorf("without metrics the verdict is %q", got)
	}
}
