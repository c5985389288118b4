package main

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"time"
	"unicode"

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

	bindAddr  string
	plainHTTP bool
	certFile  string
	keyFile   string
	tlsSecret string
	tlsNames  []string
	namespace string // where the Secret is

	hosts         []string
	namespaces    []string
	allNamespaces bool
	clockWindow   time.Duration
	rate          float64
	burst         int
	failures      float64
	signAction    bool

	callTimeout     time.Duration
	shutdownTimeout time.Duration
	maxInFlight     int
}

func (o *shimOptions) bind(flags *pflag.FlagSet) {
	o.servingOptions.bind(flags)
	o.brokerOptions.bind(flags)
	o.databaseOptions.bind(flags)
	flags.StringVar(&o.bindAddr, "bind-address", ":8080", "address of the API")
	flags.BoolVar(&o.plainHTTP, "plain-http", false, "serve without TLS, behind a proxy that has it")
	flags.StringVar(&o.certFile, "tls-cert-file", "", "file with the certificate to serve with; read again when it changes, like its key (default one that is made and renewed here)")
	flags.StringVar(&o.keyFile, "tls-key-file", "", "file with the certificate's key")
	flags.StringVar(&o.tlsSecret, "tls-secret", "batchtask-shim-tls", "Secret that keeps the certificate that is made here; its ca.crt is what callers trust")
	flags.StringSliceVar(&o.tlsNames, "tls-names", listOf(os.Getenv("SHIM_TLS_NAMES")), "host names and addresses, besides those of the Service batchtask-shim, that the certificate made here is for; default from $SHIM_TLS_NAMES")
	flags.StringVar(&o.namespace, "namespace", os.Getenv("POD_NAMESPACE"), "namespace of --tls-secret and the Service; default from $POD_NAMESPACE")

	flags.StringSliceVar(&o.hosts, "hosts", qcloud.DefaultHosts(), "hosts that callers may sign for, besides the one they connect to")
	flags.StringSliceVar(&o.namespaces, "namespaces", listOf(os.Getenv("SHIM_NAMESPACES")), "namespaces that are served, each an account: the ClusterRole batchtask-shim must be bound in them; default from $SHIM_NAMESPACES")
	flags.BoolVar(&o.allNamespaces, "all-namespaces", false, "serve all namespaces: the ClusterRole batchtask-shim must be bound in the cluster, and lets the HTTP front read all Secrets")
	flags.DurationVar(&o.clockWindow, "clock-window", qcloud.DefaultWindow, "how far a caller's clock may differ, in whole seconds")
	flags.Float64Var(&o.rate, "rate-limit", shim.DefaultRate, "calls a second of one account")
	flags.IntVar(&o.burst, "rate-burst", shim.DefaultBurst, "calls of one account at once")
	flags.Float64Var(&o.failures, "failure-rate-limit", shim.DefaultFailures, "calls a second of one address that may fail before it is known whose they are; beyond, they are not told why and not logged")
	flags.BoolVar(&o.signAction, "require-signed-action", false, "refuse TC3 calls that do not have X-TC-Action among their signed headers, as most clients do not")

	flags.DurationVar(&o.callTimeout, "call-timeout", shim.DefaultTimeout, "how long a call may take")
	flags.DurationVar(&o.shutdownTimeout, "shutdown-timeout", 20*time.Second, "how long calls in flight may take to end when the shim is stopped")
	flags.IntVar(&o.maxInFlight, "max-in-flight", shim.DefaultMaxInFlight, "how many calls are worked on at once, of one account an eighth of that; others wait")
}

// maxNonces is how many calls with a pair of credentials are remembered, which is as many as its rate
// allows in the time that a Timestamp can be accepted: one that lies ahead counts longest.
func (o *shimOptions) maxNonces() int {
	return max(qcloud.DefaultMaxNonces, o.burst+int(math.Ceil(o.rate*2*o.clockWindow.Seconds())))
}

// listOf returns the parts of a list that is separated by commas or white space.
func listOf(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return r == ',' || unicode.IsSpace(r) })
}

// validate names the first setting that cannot work.
func (o *shimOptions) validate() error {
	switch {
	case (o.certFile == "") != (o.keyFile == ""):
		return errors.New("--tls-cert-file and --tls-key-file: give both, or none")
	case o.plainHTTP && o.certFile != "":
		return errors.New("--plain-http and --tls-cert-file: give one of them")
	case !o.plainHTTP && o.certFile == "" && o.namespace == "":
		return errors.New("--namespace (or POD_NAMESPACE) is required: the namespace of the Secret that keeps the certificate; or give --tls-cert-file and --tls-key-file, or --plain-http")
	case len(o.namespaces) == 0 && !o.allNamespaces:
		return errors.New("--namespaces: name those to be served (the key namespaces of the ConfigMap batchtask-shim, when installed), or give --all-namespaces")
	case len(o.namespaces) != 0 && o.allNamespaces:
		return errors.New("--namespaces and --all-namespaces: give one of them")
	case o.clockWindow < time.Second || o.clockWindow%time.Second != 0:
		return fmt.Errorf("--clock-window=%s: must be whole seconds, at least one", o.clockWindow)
	case !(o.rate > 0):
		return fmt.Errorf("--rate-limit=%g: must be positive", o.rate)
	case o.burst < 1:
		return fmt.Errorf("--rate-burst=%d: must be at least 1", o.burst)
	case !(o.failures > 0):
		return fmt.Errorf("--failure-rate-limit=%g: must be positive", o.failures)
	case o.callTimeout <= 0:
		return fmt.Errorf("--call-timeout=%s: must be positive", o.callTimeout)
	case o.shutdownTimeout <= 0:
		return fmt.Errorf("--shutdown-timeout=%s: must be positive", o.shutdownTimeout)
	case o.maxInFlight < 1:
		return fmt.Errorf("--max-in-flight=%d: must be at least 1", o.maxInFlight)
	}
	return o.databaseOptions.validate()
}
