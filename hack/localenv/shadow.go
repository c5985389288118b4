package localenv

import (
	"context"

	"batchtask.dev/operator/internal/mqtt"
)

// startShadow starts `batchtask shadow`, waits until devices can be heard, and
// completes env.
func (s *session) startShadow(ctx context.Context, env *Env) error {
	metrics, probe, err := servingAddresses(ctx, "the shadow service")
	if err != nil {
		return err
	}
	env.ShadowLog = s.path("shadow.log")
	return s.run(ctx, program{
		name: "shadow",
		path: s.Program,
		args: append([]string{
			"shadow",
			"--metrics-bind-address=" + metrics, "--metrics-secure=false",
			"--health-probe-bind-address=" + probe,
			databaseNetworks,
			"--zap-encoder=console", "--zap-time-encoding=rfc3339",
		}, s.ShadowFlags...),
		env: s.environment(env),
		// Not /readyz, which also a replica that stands by answers. The service is
		// started after its caches are filled, and this is after its subscription.
		ready: answersWith("http://"+metrics+"/metrics", mqtt.MetricConnected+" 1"),
	})
}
