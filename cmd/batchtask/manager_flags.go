package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/pflag"

	"batchtask.dev/operator/controllers"
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

// maxPageMemory is a tebibyte.
const maxPageMemory = 1 << 20

// managerOptions are the settings of the manager.
type managerOptions struct {
	commonOptions

	webhooks       bool
	webhookPort    int
	webhookCerts   string
	webhookCertDir string
	webhookService string
	webhookSecret  string
	// webhookClientCA and webhookClientNames say who may call the webhooks.
	webhookClientCA    string
	webhookClientNames []string

	checkpoint     time.Duration
	drain          time.Duration
	scheduleSkew   time.Duration
	slotGrace      time.Duration
	quarantine     time.Duration
	shadowParallel int
	resendLimit    int
	unacknowledged int
	patience       time.Duration
	pageMemory     int
	statusWrites   int
}

func (o *managerOptions) bind(flags *pflag.FlagSet) {
	o.commonOptions.bind(flags)

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
	flags.StringVar(&o.webhookClientCA, "webhook-client-ca-file", "", "certificates of the authorities (PEM) whose clients may call the webhooks: the API server must show a certificate then. It is read again when it changes. Without it whoever reaches the port may call")
	flags.StringSliceVar(&o.webhookClientNames, "webhook-client-names", nil, "names of the clients, as in their certificates (common name or DNS name), that may call the webhooks (default: all that --webhook-client-ca-file has signed)")

	flags.DurationVar(&o.checkpoint, "checkpoint-interval", executor.DefaultCheckpointInterval, "how often a running task writes how far it is")
	flags.DurationVar(&o.drain, "drain-timeout", executor.DefaultDrainTimeout, "how long a cancelled task, or the manager at its end, waits for acknowledgements")
	flags.DurationVar(&o.patience, "ending-patience", executor.DefaultPatience, "how long a task that is cancelled, or whose time is over, waits for a fleet that cannot be reached before it ends without it")
	flags.IntVar(&o.unacknowledged, "unacknowledged-limit", executor.DefaultUnacknowledgedLimit, "how many messages of a task may be without acknowledgement after --mqtt-ack-timeout before it sends no more until some are acknowledged")
	flags.IntVar(&o.pageMemory, "page-memory", executor.DefaultPageMemory>>20, "how many MiB the devices may take that all running tasks have read ahead")
	flags.IntVar(&o.statusWrites, "status-writes", controllers.DefaultStatusWrites, "how many times a second the progress of running tasks is written, over all tasks, beside what fast tasks wait for; 0 for any number")
	flags.DurationVar(&o.scheduleSkew, "schedule-skew", schedule.DefaultSkew, "how far in the past a new task's scheduleTimeInSeconds may lie")
	flags.DurationVar(&o.slotGrace, "slot-grace", quota.DefaultGrace, "how long a slot is kept for a task whose creation was not completed")
	flags.DurationVar(&o.quarantine, "product-id-quarantine", controllers.DefaultQuarantine, "how long a product ID is kept for its namespace after its Product is gone")
	flags.IntVar(&o.shadowParallel, "shadow-parallel", kube.DefaultConcurrency, "how many Device objects are updated at once")
}

// validate names the first setting that cannot work.
func (o *managerOptions) validate() error {
	if err := o.commonOptions.validate(); err != nil {
		return err
	}
	switch {
	case o.webhookCerts != certsSelf && o.webhookCerts != certsFiles:
		return fmt.Errorf("--webhook-certs=%s: must be %s or %s", o.webhookCerts, certsSelf, certsFiles)
	case o.webhooks && o.webhookCerts == certsSelf && o.namespace == "":
		return errors.New("--namespace (or POD_NAMESPACE) is required with --webhook-certs=self: the namespace of the Secret")
	case len(o.webhookClientNames) > 0 && o.webhookClientCA == "":
		return errors.New("--webhook-client-names needs --webhook-client-ca-file: without it no client shows a certificate")
	case o.webhookPort < 1 || o.webhookPort > 65535:
		return fmt.Errorf("--webhook-port=%d: must be 1 to 65535", o.webhookPort)
	case o.resendLimit < 0 || o.resendLimit > maxResendLimit:
		return fmt.Errorf("--resend-limit=%d: must be 0 (as --publish-window) to %d", o.resendLimit, maxResendLimit)
	case o.unacknowledged < 1 || o.unacknowledged > maxResendLimit:
		return fmt.Errorf("--unacknowledged-limit=%d: must be 1 to %d", o.unacknowledged, maxResendLimit)
	case o.pageMemory < 1 || o.pageMemory > maxPageMemory:
		return fmt.Errorf("--page-memory=%d: must be 1 to %d (MiB)", o.pageMemory, maxPageMemory)
	case o.statusWrites < 0:
		return fmt.Errorf("--status-writes=%d: must not be negative", o.statusWrites)
	case o.shadowParallel < 1:
		return fmt.Errorf("--shadow-parallel=%d: must be at least 1", o.shadowParallel)
	}
	for name, d := range map[string]time.Duration{
		"ending-patience": o.patience, "checkpoint-interval": o.checkpoint, "drain-timeout": o.drain, "slot-grace": o.slotGrace,
	} {
		if d <= 0 {
			return fmt.Errorf("--%s=%s: must be positive", name, d)
		}
	}
	if o.quarantine < 0 {
		return fmt.Errorf("--product-id-quarantine=%s: must not be negative", o.quarantine)
	}
	if o.scheduleSkew < 0 {
		return fmt.Errorf("--schedule-skew=%s: must not be negative", o.scheduleSkew)
	}
	return nil
}
