package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/pflag"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/controllers"
	"batchtask.dev/operator/internal/fleet/kube"
	"batchtask.dev/operator/internal/mqtt"
)

// brokerOptions are the settings of the connections to the broker.
type brokerOptions struct {
	mqtt mqtt.Options
}

func (o *brokerOptions) bind(flags *pflag.FlagSet) {
	flags.StringVar(&o.mqtt.URL, "mqtt-url", os.Getenv("MQTT_URL"), "URL of the MQTT broker, such as tcp://mosquitto:1883 or ssl://broker:8883 (default from MQTT_URL)")
	flags.StringVar(&o.mqtt.UsernameFile, "mqtt-username-file", "", "file with the user name at the broker; read again for each connection, like all files of the broker")
	flags.StringVar(&o.mqtt.PasswordFile, "mqtt-password-file", "", "file with the password at the broker")
	flags.StringVar(&o.mqtt.CAFile, "mqtt-ca-file", "", "file with the certificates that the broker's is checked against (default the system's)")
	flags.StringVar(&o.mqtt.CertFile, "mqtt-cert-file", "", "file with the client certificate")
	flags.StringVar(&o.mqtt.KeyFile, "mqtt-key-file", "", "file with the key of the client certificate")
	flags.StringVar(&o.mqtt.ServerName, "mqtt-server-name", "", "name that the broker's certificate must have (default the host of --mqtt-url)")
}

// newPool makes a pool of connections that is not connected yet.
func (o *brokerOptions) newPool(log logr.Logger) (*mqtt.Pool, error) {
	o.mqtt.Log = log.WithName("mqtt")
	o.mqtt.Metrics = mqtt.NewMetrics(metrics.Registry)
	pool, err := mqtt.New(o.mqtt)
	if err != nil {
		return nil, fmt.Errorf("--mqtt-* settings: %w", err)
	}
	return pool, nil
}

// commonOptions are the settings of every subcommand that needs the broker and may
// elect a leader.
type commonOptions struct {
	servingOptions
	brokerOptions
	databaseOptions

	namespace     string
	leaderElect   bool
	leaseDuration time.Duration
	renewDeadline time.Duration
	retryPeriod   time.Duration
}

func (o *commonOptions) bind(flags *pflag.FlagSet) {
	o.servingOptions.bind(flags)
	o.brokerOptions.bind(flags)
	o.databaseOptions.bind(flags)

	flags.StringVar(&o.namespace, "namespace", os.Getenv("POD_NAMESPACE"), "namespace that the program runs in (default from POD_NAMESPACE)")

	flags.BoolVar(&o.leaderElect, "leader-elect", false, "work on one replica only, which a Lease elects")
	flags.DurationVar(&o.leaseDuration, "leader-elect-lease-duration", 15*time.Second, "how long a silent leader stays leader")
	flags.DurationVar(&o.renewDeadline, "leader-elect-renew-deadline", 10*time.Second, "how long the leader tries to renew before it gives up; after half of it without a renewal it begins no task and serves no further devices")
	flags.DurationVar(&o.retryPeriod, "leader-elect-retry-period", 2*time.Second, "how often to try to become or stay leader")
}

// validate names the first setting that cannot work.
func (o *commonOptions) validate() error {
	switch {
	case o.mqtt.URL == "":
		return errors.New("--mqtt-url (or MQTT_URL) is required: the URL of the MQTT broker, such as tcp://mosquitto:1883")
	case o.leaderElect && o.namespace == "":
		return errors.New("--namespace (or POD_NAMESPACE) is required with --leader-elect: the namespace of the Lease")
	case o.retryPeriod <= 0:
		return fmt.Errorf("--leader-elect-retry-period=%s: must be positive", o.retryPeriod)
	case o.leaseDuration < time.Second || o.leaseDuration%time.Second != 0:
		return fmt.Errorf("--leader-elect-lease-duration=%s: must be whole seconds, as a Lease keeps them, and at least 1s", o.leaseDuration)
	case o.renewDeadline >= o.leaseDuration || o.renewDeadline < 5*o.retryPeriod/2:
		// A leader is in doubt after half of the renew deadline: it must be renewed well before.
		return fmt.Errorf("--leader-elect-lease-duration=%s must be longer than --leader-elect-renew-deadline=%s, and that at least 2.5 times --leader-elect-retry-period=%s",
			o.leaseDuration, o.renewDeadline, o.retryPeriod)
	}
	return o.databaseOptions.validate()
}

// newManager makes a manager as the settings and the other options say, whose
// leader the Lease of that name elects, and whose cache keeps of devices what the
// fleet needs.
func (o *commonOptions) newManager(log logr.Logger, lease string, options ctrl.Options) (ctrl.Manager, error) {
	options.LeaderElection, options.LeaderElectionID, options.LeaderElectionNamespace = o.leaderElect, lease, o.namespace
	options.LeaderElectionReleaseOnCancel = true
	options.LeaseDuration, options.RenewDeadline, options.RetryPeriod = &o.leaseDuration, &o.renewDeadline, &o.retryPeriod
	options.Cache = cache.Options{
		DefaultTransform: cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{
			&v1alpha1.Device{}:    {Transform: kube.StripDevice},
			&v1alpha1.BatchTask{}: {Transform: controllers.StripFinished},
		},
	}
	return o.servingOptions.newManager(log, options)
}
