package e2e

import (
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
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
	m.wantNothingForbidden(t)
}

// wantNothingForbidden fails if the API server has refused the program anything.
func (m *process) wantNothingForbidden(t *testing.T) {
	t.Helper()
	if m.output.contains("forbidden") {
		t.Error("the program was refused something, see its log")
	}
}

// asShipped returns a kubeconfig of a service account of the operator, with the rights that
// the manifests give it.
func asShipped(t *testing.T, serviceAccount string) []byte {
	t.Helper()
	shipRights(t)
	return impersonate(t, testenv.Start(t).KubeConfig, serviceAccount)
}

// shipRights applies what the manifests say of rights.
func shipRights(t *testing.T) {
	t.Helper()
	env := testenv.Start(t)
	shipped.Do(func() {
		kubectl(t, env.KubeConfig, "apply", "--server-side", "-f", filepath.Join("..", "..", "config", "default", "namespace.yaml"))
		for _, part := range []string{"rbac", "shadow", "shim"} {
			kubectl(t, env.KubeConfig, "apply", "--server-side", "-k", filepath.Join("..", "..", "config", part))
		}
	})
}

// shipped is done once for all tests of the package: they have one control plane.
var shipped sync.Once

// mayReadDatabases lets the operator read the Secrets of a namespace, as an administrator
// does where a Product has a fleet in a database.
func mayReadDatabases(t *testing.T, namespace string) {
	t.Helper()
	shipRights(t)
	binding := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "batchtask-database-reader"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "batchtask-database-reader"},
	}
	for _, account := range []string{"batchtask-manager", "batchtask-shadow", "batchtask-shim"} {
		binding.Subjects = append(binding.Subjects, rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Namespace: systemNamespace, Name: account})
	}
	admin := testenv.Start(t).Client
	if err := admin.Create(t.Context(), binding); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the API server to know of it", func() (bool, string) {
		review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User:               "system:serviceaccount:" + systemNamespace + ":batchtask-manager",
			ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: namespace, Verb: "get", Resource: "secrets", Name: "db"},
		}}
		err := admin.Create(t.Context(), review)
		return err == nil && review.Status.Allowed, fmt.Sprint(review.Status, err)
	})
}

// The manager's role names the one Secret that is its own.
func TestManagerReadsNoOtherSecret(t *testing.T) {
	config, err := clientcmd.RESTConfigFromKubeConfig(asShipped(t, "batchtask-manager"))
	if err != nil {
		t.Fatal(err)
	}
	manager, err := client.New(config, client.Options{Scheme: testenv.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	env := testenv.Start(t)
	mine, other, elsewhere := &corev1.Secret{}, &corev1.Secret{}, &corev1.Secret{}
	mine.Namespace, mine.Name = systemNamespace, "batchtask-webhook-cert"
	other.Namespace, other.Name = systemNamespace, "somebody-elses"
	elsewhere.Namespace, elsewhere.Name = env.Namespace(t), "db"
	for _, secret := range []*corev1.Secret{mine, other, elsewhere} {
		if err := client.IgnoreAlreadyExists(env.Client.Create(t.Context(), secret)); err != nil {
			t.Fatal(err)
		}
	}
	if err := manager.Get(t.Context(), client.ObjectKeyFromObject(mine), mine); err != nil {
		t.Errorf("the manager cannot read the Secret of its certificate: %v", err)
	}
	var list corev1.SecretList
	if err := manager.List(t.Context(), &list, client.InNamespace(systemNamespace), client.MatchingFields{"metadata.name": mine.Name}); err != nil || len(list.Items) != 1 {
		t.Errorf("the manager cannot list the Secret of its certificate: %v, %d", err, len(list.Items))
	}
	for _, secret := range []*corev1.Secret{other, elsewhere} {
		if err := manager.Get(t.Context(), client.ObjectKeyFromObject(secret), secret); !apierrors.IsForbidden(err) {
			t.Errorf("the manager may read the Secret %s/%s: %v", secret.Namespace, secret.Name, err)
		}
		if err := manager.List(t.Context(), &list, client.InNamespace(secret.Namespace)); !apierrors.IsForbidden(err) {
			t.Errorf("the manager may list the Secrets of %s: %v", secret.Namespace, err)
		}
	}
	lease := &coordinationv1.Lease{}
	lease.Namespace, lease.Name = systemNamespace, "batchtask-shadow"
	if err := manager.Get(t.Context(), client.ObjectKeyFromObject(lease), lease); !apierrors.IsForbidden(err) {
		t.Errorf("the manager may read the Lease of another program: %v", err)
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
			if len(rule.Resources) == 0 {
				continue // of no object
			}
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
