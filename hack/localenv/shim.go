package localenv

import (
	"context"
	"crypto/rand"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"batchtask.dev/operator/api/v1alpha1"
)

// DefaultShimAddress is where the shim listens if nothing else is asked for.
const DefaultShimAddress = "127.0.0.1:8080"

// startShim starts `batchtask shim`, with credentials for env.Namespace, waits
// until it is ready, and completes env. It returns what to tell people about it.
func (s *session) startShim(ctx context.Context, env *Env) (description string, err error) {
	listener := listener{name: "the HTTP front", wanted: s.ShimAddress, usual: DefaultShimAddress, advice: "DEV_API_ADDR sets an address"}
	address, note, err := listener.address(ctx)
	if err != nil {
		return "", err
	}
	probe, err := freeAddress(ctx, "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("looking for a free port for the shim: %w", err)
	}
	if env.SecretID, env.SecretKey, err = makeCredentials(ctx, env); err != nil {
		return "", err
	}
	err = s.run(ctx, program{
		name: "shim",
		path: s.Program,
		args: append([]string{
			"shim",
			"--bind-address=" + address,
			"--plain-http", // it listens on this machine alone, and clients of others need no certificate
			"--all-namespaces",
			"--metrics-bind-address=0", "--health-probe-bind-address=" + probe,
			databaseNetworks,
			"--zap-encoder=console", "--zap-time-encoding=rfc3339",
		}, s.ShimFlags...),
		env:   s.environment(env),
		ready: answersOK("http://" + probe + "/readyz"),
	})
	env.APIURL, env.ShimLog = "http://"+reachable(address), s.path("shim.log")
	return "http://" + reachable(address) + note, err
}

// makeCredentials makes credentials for the account that env.Namespace is, of the
// form and the length that clients know.
func makeCredentials(ctx context.Context, env *Env) (secretID, secretKey string, err error) {
	const length = 32
	secretID, secretKey = "AKID"+(rand.Text() + rand.Text())[:length], (rand.Text() + rand.Text())[:length]
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Name: "api-credentials", Namespace: env.Namespace,
			Labels: map[string]string{v1alpha1.LabelCredentials: "true"},
		},
		StringData: map[string]string{
			v1alpha1.CredentialsSecretID:  secretID,
			v1alpha1.CredentialsSecretKey: secretKey,
		},
	}
	if err := env.Client.Create(ctx, secret); err != nil {
		return "", "", fmt.Errorf("making credentials for namespace %q: %w", env.Namespace, err)
	}
	return secretID, secretKey, nil
}
