package main

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/spf13/pflag"

	"batchtask.dev/operator/internal/qcloud"
	"batchtask.dev/operator/internal/shim"
)

// shimOptions are the settings of the HTTP front. Where there is no --mqtt-url it
// does without the calls that send messages.
type shimOptions struct {
	servingOptions
	brokerOptions
	databaseOptions

	bindAddr string
	certFile string
	keyFile  string

	hosts       []string
	namespaces  []string
	clockWindow time.Duration
	rate        float64
	burst       int

	callTimeout     time.Duration
	shutdownTimeout time.Duration
	maxInFlight     int
}

func (o *shimOptions) bind(flags *pflag.FlagSet) {
	o.servingOptions.bind(flags)
	o.brokerOptions.bind(flags)
	o.databaseOptions.bind(flags)
	flags.StringVar(&o.bindAddr, "bind-address", ":8080", "address of the API")
	flags.StringVar(&o.certFile, "tls-cert-file", "", "file with the certificate to serve with; read again when it changes, like its key (default plain HTTP)")
	flags.StringVar(&o.keyFile, "tls-key-file", "", "file with the certificate's key")

	flags.StringSliceVar(&o.hosts, "hosts", qcloud.DefaultHosts(), "hosts that callers may sign for, besides the one they connect to")
	flags.StringSliceVar(&o.namespaces, "namespaces", nil, "namespaces whose Secrets hold credentials (default all)")
	flags.DurationVar(&o.clockWindow, "clock-window", qcloud.DefaultWindow, "how far a caller's clock may differ, in whole seconds")
	flags.Float64Var(&o.rate, "rate-limit", shim.DefaultRate, "calls a second of one SecretId")
	flags.IntVar(&o.burst, "rate-burst", shim.DefaultBurst, "calls of one SecretId at once")

	flags.DurationVar(&o.callTimeout, "call-timeout", shim.DefaultTimeout, "how long a call may take")
	flags.DurationVar(&o.shutdownTimeout, "shutdown-timeout", 20*time.Second, "how long calls in flight may take to end when the shim is stopped")
	flags.IntVar(&o.maxInFlight, "max-in-flight", shim.DefaultMaxInFlight, "how many calls are worked on at once; others wait")
}

// maxNonces is how many calls of a SecretId are remembered, which is as many as its rate
// allows in the time that a Timestamp can be accepted: one that lies ahead counts longest.
func (o *shimOptions) maxNonces() int {
	return max(qcloud.DefaultMaxNonces, o.burst+int(math.Ceil(o.rate*2*o.clockWindow.Seconds())))
}

// validate names the first setting that cannot work.
func (o *shimOptions) validate() error {
	switch {
	case (o.certFile == "") != (o.keyFile == ""):
		return errors.New("--tls-cert-file and --tls-key-file: give both, or none for plain HTTP")
	case o.clockWindow < time.Second || o.clockWindow%time.Second != 0:
		return fmt.Errorf("--clock-window=%s: must be whole seconds, at least one", o.clockWindow)
	case !(o.rate > 0):
		return fmt.Errorf("--rate-limit=%g: must be positive", o.rate)
	case o.burst < 1:
		return fmt.Errorf("--rate-burst=%d: must be at least 1", o.burst)
	case o.callTimeout <= 0:
		return fmt.Errorf("--call-timeout=%s: must be positive", o.callTimeout)
	case o.shutdownTimeout <= 0:
		return fmt.Errorf("--shutdown-timeout=%s: must be positive", o.shutdownTimeout)
	case o.maxInFlight < 1:
		return fmt.Errorf("--max-in-flight=%d: must be at least 1", o.maxInFlight)
	}
	return o.databaseOptions.validate()
}
