package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
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
	mountSecret(t, certs)

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
	// It may ask them for a moment more.
	eventually(t, "tasks to be admitted without the webhooks", func() (bool, string) {
		err := env.Client.Create(t.Context(), s.task("dry-run").Publish("event", "close").Obj(), client.DryRunAll)
		return err == nil, fmt.Sprint(err)
	})
	s.create(s.task("open").UpdateShadow(`{"state":"open"}`).Filter("door$").TTL(0).Obj())
	s.create(s.task("close").Publish("event", "close").Filter("^door").Obj())
	wantCounts(t, s.finished("close"), v1alpha1.TaskPhaseDone, v1alpha1.DeviceCounts{Matched: 1, Succeeded: 1})
	eventually(t, "the finished task to be deleted", func() (bool, string) {
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

// mountSecret does what the kubelet does until the test ends: it keeps the files of a
// Secret volume as the Secret says, and changes all of them at once.
func mountSecret(t *testing.T, dir string) {
	t.Helper()
	reader := testenv.Start(t).Client
	const current = "..data"
	for _, name := range []string{"ca.crt", "ca.key", "tls.crt", "tls.key"} {
		if err := os.Symlink(filepath.Join(current, name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	var mounting sync.WaitGroup
	t.Cleanup(mounting.Wait) // else it might write while dir is removed
	mounting.Go(func() {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		mounted := ""
		for {
			secret := &corev1.Secret{}
			err := reader.Get(t.Context(), client.ObjectKey{Namespace: systemNamespace, Name: "batchtask-webhook-cert"}, secret)
			if err == nil && secret.ResourceVersion != mounted {
				version := "..version-" + secret.ResourceVersion
				_ = os.Mkdir(filepath.Join(dir, version), 0o700)
				for name, data := range secret.Data {
					_ = os.WriteFile(filepath.Join(dir, version, name), data, 0o600)
				}
				_ = os.Symlink(version, filepath.Join(dir, "..next"))
				_ = os.Rename(filepath.Join(dir, "..next"), filepath.Join(dir, current))
				mounted = secret.ResourceVersion
			}
			select {
			case <-tick.C:
			case <-t.Context().Done():
				return
			}
		}
	})
}

// impersonate returns a kubeconfig of a service account of the operator, which has its
// rights by then.
func impersonate(t *testing.T, kubeConfig []byte, serviceAccount string) []byte {
	t.Helper()
	user := "system:serviceaccount:" + systemNamespace + ":" + serviceAccount
	groups := []string{"system:serviceaccounts", "system:serviceaccounts:" + systemNamespace, "system:authenticated"}
	awaitRights(t, serviceAccount, user, groups)
	config, err := clientcmd.Load(kubeConfig)
	if err != nil {
		t.Fatal(err)
	}
	for _, admin := range config.AuthInfos {
		admin.Impersonate, admin.ImpersonateGroups = user, groups
	}
	text, err := clientcmd.Write(*config)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// awaitRights waits until the API server grants what the roles of a service account say.
// It authorizes by what it watches, which may be older than what was just written.
func awaitRights(t *testing.T, serviceAccount, user string, groups []string) {
	t.Helper()
	admin := testenv.Start(t).Client
	var everywhere rbacv1.ClusterRoleBindingList
	var somewhere rbacv1.RoleBindingList
	for _, list := range []client.ObjectList{&everywhere, &somewhere} {
		if err := admin.List(t.Context(), list); err != nil {
			t.Fatal(err)
		}
	}
	bindings := somewhere.Items
	for _, b := range everywhere.Items {
		bindings = append(bindings, rbacv1.RoleBinding{Subjects: b.Subjects, RoleRef: b.RoleRef})
	}
	subject := rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Namespace: systemNamespace, Name: serviceAccount}
	asked := 0
	for _, b := range bindings {
		if !slices.Contains(b.Subjects, subject) {
			continue
		}
		for _, rule := range rulesOf(t, b) {
			resource, subresource, _ := strings.Cut(rule.Resources[0], "/")
			attributes := &authorizationv1.ResourceAttributes{
				Namespace: b.Namespace, Verb: rule.Verbs[0], Group: rule.APIGroups[0], Resource: resource, Subresource: subresource,
			}
			if len(rule.ResourceNames) > 0 {
				attributes.Name = rule.ResourceNames[0]
			}
			asked++
			eventually(t, "the rights of "+user, func() (bool, string) {
				review := &authorizationv1.SubjectAccessReview{
					Spec: authorizationv1.SubjectAccessReviewSpec{User: user, Groups: groups, ResourceAttributes: attributes},
				}
				err := admin.Create(t.Context(), review)
				return err == nil && review.Status.Allowed, fmt.Sprintf("%+v: %+v, %v", attributes, review.Status, err)
			})
		}
	}
	if asked == 0 {
		t.Fatalf("%s has no rights", user)
	}
}

// rulesOf returns what a binding grants.
func rulesOf(t *testing.T, b rbacv1.RoleBinding) []rbacv1.PolicyRule {
	t.Helper()
	admin := testenv.Start(t).Client
	if b.RoleRef.Kind == "Role" {
		role := &rbacv1.Role{}
		if err := admin.Get(t.Context(), client.ObjectKey{Namespace: b.Namespace, Name: b.RoleRef.Name}, role); err != nil {
			t.Fatal(err)
		}
		return role.Rules
	}
	role := &rbacv1.ClusterRole{}
	if err := admin.Get(t.Context(), client.ObjectKey{Name: b.RoleRef.Name}, role); err != nil {
		t.Fatal(err)
	}
	return role.Rules
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
