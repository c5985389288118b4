package main

import (
	"strings"
	"testing"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
)

// What keeps the HTTP front from starting is told, as where nobody has made the Secret for its
// certificate.
func TestShimWithoutItsSecret(t *testing.T) {
	p := newPerson(t)
	registry := metrics.Registry
	metrics.Registry = prometheus.NewRegistry()
	t.Cleanup(func() { metrics.Registry = registry })
	opts, flags := &shimOptions{}, pflag.NewFlagSet("", pflag.ContinueOnError)
	opts.bind(flags)
	if err := flags.Parse([]string{
		"--bind-address=127.0.0.1:0", "--metrics-bind-address=0", "--health-probe-bind-address=0",
		"--namespace=" + p.namespace, "--all-namespaces", "--tls-secret=none",
	}); err != nil {
		t.Fatal(err)
	}
	if err := runShim(t.Context(), opts, logr.Discard()); err == nil || !strings.Contains(err.Error(), "/none, which keeps the certificate") {
		t.Errorf("ended with %v", err)
	}
}
