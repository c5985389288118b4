package localenv

import (
	"context"
	"fmt"

	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

// startManager starts `batchtask manager`, waits until it is ready, which
// includes its webhooks, and returns the URL of its metrics.
func (s *session) startManager(ctx context.Context, env *Env, webhook envtest.WebhookInstallOptions) (string, error) {
	metrics, probe, err := servingAddresses(ctx, "the manager")
	if err != nil {
		return "", err
	}
	err = s.run(ctx, program{
		name: "manager",
		path: s.Program,
		args: append([]string{
			"manager",
			"--webhook-certs=files", "--webhook-cert-dir=" + webhook.LocalServingCertDir,
			fmt.Sprintf("--webhook-port=%d", webhook.LocalServingPort),
			"--metrics-bind-address=" + metrics, "--metrics-secure=false",
			"--health-probe-bind-address=" + probe,
			databaseNetworks,
			"--zap-encoder=console", "--zap-time-encoding=rfc3339",
		}, s.ManagerFlags...),
		env:   s.environment(env),
		ready: answersOK("http://" + probe + "/readyz"),
	})
	return "http://" + metrics + "/metrics", err
}
