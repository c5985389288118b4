package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/hack/localenv"
	"batchtask.dev/operator/internal/mqtt/mqtttest"
	"batchtask.dev/operator/internal/testenv"
)

const systemNamespace = "batchtask-system"

// The manager runs as config/default installs it: as its service account, with no
// right that the manifests do not give it, elected by a Lease, and with a webhook
// certificate that it makes itself.
func TestInstalledAsShipped(t *testing.T) {
	env := testenv.Start(t)
	broker := mqtttest.StartMosquitto(t)
	kubectl(t, env.KubeConfig, "apply", "--server-side", "-k", filepath.Join("..", "..", "config", "default"))
	validating := &admissionv1.ValidatingWebhookConfiguration{}
	validating.Name = "batchtask-validating"
	mutating := &admissionv1.MutatingWebhookConfiguration{}
	mutating.Name = "batchtask-mutating"
	removeWebhooks := func() {
		for _, o := range []client.Object{validating, mutating} {
			if err := client.IgnoreNotFound(env.Client.Delete(t.Context(), o)); err != nil {
				t.Fatal(err)
			}
		}
	}
	certs := t.TempDir()
	go mountSecret(t, certs)

	_, port := splitAddress(t, freeAddress(t))
	m := startManagerAs(t, impersonate(t, env.KubeConfig, "batchtask-manager"), broker.URL(),
		"--leader-elect", "--namespace="+systemNamespace, "--webhook-cert-dir="+certs, "--webhook-port="+port)

	for _, o := range []client.Object{validating, mutating} {
		if err := env.Client.Get(t.Context(), client.ObjectKeyFromObject(o), o); err != nil {
			t.Fatal(err)
		}
	}
	if len(validating.Webhooks[0].ClientConfig.CABundle) == 0 || len(mutating.Webhooks[0].ClientConfig.CABundle) == 0 {
		t.Error("the API server was not told of the webhooks' certificate authority")
	}
	// Here the API server cannot reach the Service that they are behind.
	removeWebhooks()

	s := newSite(t, "front-door", "back-door", "door-1")
	s.create(s.task("open").UpdateShadow(`{"state":"open"}`).Filter("door$").TTL(0).Obj())
	s.create(s.task("close").Publish("event", "close").Filter("^door").Obj())
	wantCounts(t, s.finished("close", time.Minute), v1alpha1.TaskPhaseDone, v1alpha1.DeviceCounts{Matched: 1, Succeeded: 1})
	eventually(t, time.Minute, "the finished task to be deleted", func() (bool, string) {
		task := &v1alpha1.BatchTask{}
		err := env.Client.Get(t.Context(), client.ObjectKey{Namespace: s.namespace, Name: "open"}, task)
		return client.IgnoreNotFound(err) == nil && err != nil, describe(task)
	})
	if got := s.shadow("front-door").Desired; got != `{"state":"open"}` {
		t.Errorf("front-door is to be %s", got)
	}
	m.stop(t)
	if bytes.Contains(m.output.buf.Bytes(), []byte("forbidden")) {
		t.Error("the manager was refused something, see its log")
	}
}

// mountSecret does what the kubelet does: it keeps the files of a Secret volume as
// the Secret says.
func mountSecret(t *testing.T, dir string) {
	reader := testenv.Start(t).Client
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	mounted := ""
	for {
		secret := &corev1.Secret{}
		err := reader.Get(t.Context(), client.ObjectKey{Namespace: systemNamespace, Name: "batchtask-webhook-cert"}, secret)
		if err == nil && secret.ResourceVersion != mounted {
			for name, data := range secret.Data {
				next := filepath.Join(dir, "."+name)
				_ = os.WriteFile(next, data, 0o600)
				_ = os.Rename(next, filepath.Join(dir, name))
			}
			mounted = secret.ResourceVersion
		}
		select {
		case <-tick.C:
		case <-t.Context().Done():
			return
		}
	}
}

// impersonate returns a kubeconfig of a service account of the operator.
func impersonate(t *testing.T, kubeConfig []byte, account string) []byte {
	t.Helper()
	config, err := clientcmd.Load(kubeConfig)
	if err != nil {
		t.Fatal(err)
	}
	for _, user := range config.AuthInfos {
		user.Impersonate = "system:serviceaccount:" + systemNamespace + ":" + account
		user.ImpersonateGroups = []string{"system:serviceaccounts", "system:serviceaccounts:" + systemNamespace, "system:authenticated"}
	}
	text, err := clientcmd.Write(*config)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func kubectl(t *testing.T, kubeConfig []byte, args ...string) {
	t.Helper()
	assets, err := localenv.FindAssets(filepath.Join("..", ".."), os.Getenv("KUBEBUILDER_ASSETS"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(path, kubeConfig, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(assets, "kubectl"), append([]string{"--kubeconfig", path}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("kubectl %v: %v\n%s", args, err, out)
	}
}
