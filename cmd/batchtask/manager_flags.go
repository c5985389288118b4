package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/pflag"

	"batchtask.dev/operator/internal/executor"
	"batchtask.dev/operator/internal/fleet/kube"
	"batchtask.dev/operator/internal/mqtt"
	"batchtask.dev/operator/internal/quota"
	"batchtask.dev/operator/internal/schedule"
)

// Values of --webhook-certs.
const (
	certsSelf  = "self"  // the manager makes and rotates its certificate
	certsFiles = "files" // somebody else puts it into --webhook-cert-dir
)

// maxResendLimit bounds what a running task keeps in memory: about 64 bytes for
// each device.
const maxResendLimit = 1_000_000

// managerOptions are the settings of the manager.
type managerOptions struct {
	servingOptions
	mqtt mqtt.Options

	webhooks       bool
	webhookPort    int
	webhookCerts   string
	webhookCertDir string
	webhookService string
	webhookSecret  string
	namespace      string

	leaderElect    bool
	leaseDuration  time.Duration
	renewDeadline  time.Duration
	retryPeriod    time.Duration
	checkpoint     time.Duration
	drain          time.Duration
	scheduleSkew   time.Duration
	slotGrace      time.Duration
	shadowParallel int
	resendLimit    int
}

func (o *managerOptions) bind(flags *pflag.FlagSet) {
	o.servingOptions.bind(flags)
	flags.StringVar(&o.mqtt.URL, "mqtt-url", os.Getenv("MQTT_URL"), "URL of the MQTT broker, such as tcp://mosquitto:1883 or ssl://broker:8883 (default from MQTT_URL)")
	flags.StringVar(&o.mqtt.UsernameFile, "mqtt-username-file", "", "file with the user name at the broker; read again for each connection, like all files of the broker")
	flags.StringVar(&o.mqtt.PasswordFile, "mqtt-password-file", "", "file with the password at the broker")
	flags.StringVar(&o.mqtt.CAFile, "mqtt-ca-file", "", "file with the certificates that the broker's is checked against (default the system's)")
	flags.StringVar(&o.mqtt.CertFile, "mqtt-cert-file", "", "file with the client certificate")
	flags.StringVar(&o.mqtt.KeyFile, "mqtt-key-file", "", "file with the key of the client certificate")
	flags.StringVar(&o.mqtt.ServerName, "mqtt-server-name", "", "name that the broker's certificate must have (default the host of --mqtt-url)")
	flags.StringVar(&o.mqtt.ClientIDPrefix, "mqtt-client-id-prefix", mqtt.DefaultClientIDPrefix, "how the client IDs at the broker begin")
	flags.IntVar(&o.mqtt.Connections, "mqtt-connections", mqtt.DefaultConnections, "how many connections to the broker share the work")
	flags.DurationVar(&o.mqtt.AckTimeout, "mqtt-ack-timeout", mqtt.DefaultAckTimeout, "how long to wait for the broker to acknowledge a message before it is sent again")
	flags.IntVar(&o.mqtt.Window, "publish-window", executor.DefaultWindow, "how many messages may be on their way at once")
	flags.IntVar(&o.resendLimit, "resend-limit", 0, "how many devices of a task a crash may serve twice (default --publish-window); more spares writes of the task's status")

	flags.BoolVar(&o.webhooks, "webhooks", true, "serve the admission webhooks")
	flags.IntVar(&o.webhookPort, "webhook-port", 9443, "port of the admission webhooks")
	flags.StringVar(&o.webhookCerts, "webhook-certs", certsSelf, "where the webhook certificate comes from: self (made and rotated by the manager) or files (put into --webhook-cert-dir by somebody else)")
	flags.StringVar(&o.webhookCertDir, "webhook-cert-dir", "/tmp/k8s-webhook-server/serving-certs", "folder with tls.crt and tls.key; with --webhook-certs=self the Secret is mounted there")
	flags.StringVar(&o.webhookService, "webhook-service", "batchtask-webhook", "Service of the webhooks, for --webhook-certs=self")
	flags.StringVar(&o.webhookSecret, "webhook-secret", "batchtask-webhook-cert", "Secret that keeps the certificate, for --webhook-certs=self")
	flags.StringVar(&o.namespace, "namespace", os.Getenv("POD_NAMESPACE"), "namespace of the manager (default from POD_NAMESPACE)")

	flags.BoolVar(&o.leaderElect, "leader-elect", false, "run the controllers on one replica only, which a Lease elects")
	flags.DurationVar(&o.leaseDuration, "leader-elect-lease-duration", 15*time.Second, "how long a silent leader stays leader")
	flags.DurationVar(&o.renewDeadline, "leader-elect-renew-deadline", 10*time.Second, "how long the leader tries to renew before it gives up")
	flags.DurationVar(&o.retryPeriod, "leader-elect-retry-period", 2*time.Second, "how often to try to become or stay leader")

	flags.DurationVar(&o.checkpoint, "checkpoint-interval", executor.DefaultCheckpointInterval, "how often a running task writes how far it is")
	flags.DurationVar(&o.drain, "drain-timeout", executor.DefaultDrainTimeout, "how long a cancelled task, or the manager at its end, waits for acknowledgements")
	flags.DurationVar(&o.scheduleSkew, "schedule-skew", schedule.DefaultSkew, "how far in the past a new task's scheduleTimeInSeconds may lie")
	flags.DurationVar(&o.slotGrace, "slot-grace", quota.DefaultGrace, "how long a slot is kept for a task whose creation was not completed")
	flags.IntVar(&o.shadowParallel, "shadow-parallel", kube.DefaultConcurrency, "how many Device objects are updated at once")
}

// validate names the first setting that cannot work.
func (o *managerOptions) validate() error {
	switch {
	case o.mqtt.URL == "":
		return errors.New("--mqtt-url (or MQTT_URL) is required: the URL of the MQTT broker, such as tcp://mosquitto:1883")
	case o.webhookCerts != certsSelf && o.webhookCerts != certsFiles:
		return fmt.Errorf("--webhook-certs=%s: must be %s or %s", o.webhookCerts, certsSelf, certsFiles)
	case o.webhooks && o.webhookCerts == certsSelf && o.namespace == "":
		return errors.New("--namespace (or POD_NAMESPACE) is required with --webhook-certs=self: the namespace of the Secret")
	case o.leaderElect && o.namespace == "":
		return errors.New("--namespace (or POD_NAMESPACE) is required with --leader-elect: the namespace of the Lease")
	case o.webhookPort < 1 || o.webhookPort > 65535:
		return fmt.Errorf("--webhook-port=%d: must be 1 to 65535", o.webhookPort)
	case o.resendLimit < 0 || o.resendLimit > maxResendLimit:
		return fmt.Errorf("--resend-limit=%d: must be 0 (as --publish-window) to %d", o.resendLimit, maxResendLimit)
	case o.shadowParallel < 1:
		return fmt.Errorf("--shadow-parallel=%d: must be at least 1", o.shadowParallel)
	}
	for name, d := range map[string]time.Duration{
		"checkpoint-interval": o.checkpoint, "drain-timeout": o.drain, "slot-grace": o.slotGrace,
		"leader-elect-retry-period": o.retryPeriod,
	} {
		if d <= 0 {
			return fmt.Errorf("--%s=%s: must be positive", name, d)
		}
	}
	switch {
	case o.scheduleSkew < 0:
		return fmt.Errorf("--schedule-skew=%s: must not be negative", o.scheduleSkew)
	case o.renewDeadline >= o.leaseDuration || o.retryPeriod >= o.renewDeadline:
		return fmt.Errorf("--leader-elect-lease-duration=%s must be longer than --leader-elect-renew-deadline=%s, and that longer than --leader-elect-retry-period=%s",
			o.leaseDuration, o.renewDeadline, o.retryPeriod)
	}
	return nil
}
