package shim

import (
	"context"
	"fmt"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/cache"

	"batchtask.dev/operator/api/v1alpha1"
)

// SecretCache is how Secrets are to be cached: those with the label, in these
// namespaces or, if there are none, in all.
func SecretCache(namespaces []string) cache.ByObject {
	by := cache.ByObject{
		Label:     labels.SelectorFromSet(labels.Set{v1alpha1.LabelCredentials: "true"}),
		Transform: strip,
	}
	for _, namespace := range namespaces {
		if by.Namespaces == nil {
			by.Namespaces = map[string]cache.Config{}
		}
		by.Namespaces[namespace] = cache.Config{}
	}
	return by
}

// strip leaves what is used.
func strip(obj any) (any, error) {
	secret, ok := obj.(*corev1.Secret)
	if !ok {
		return obj, nil
	}
	return &corev1.Secret{
		TypeMeta: secret.TypeMeta,
		ObjectMeta: metav1.ObjectMeta{
			Namespace: secret.Namespace, Name: secret.Name, UID: secret.UID,
			ResourceVersion: secret.ResourceVersion, CreationTimestamp: secret.CreationTimestamp, Labels: secret.Labels,
		},
		Data: map[string][]byte{
			v1alpha1.CredentialsSecretID:  secret.Data[v1alpha1.CredentialsSecretID],
			v1alpha1.CredentialsSecretKey: secret.Data[v1alpha1.CredentialsSecretKey],
		},
	}, nil
}

// Watch feeds the accounts from Secrets, which informers should cache as
// [SecretCache] says, and records an event on each Secret whose credentials are not
// used, or a line in the log of ctx where its namespace must not learn of it. synced reports whether all that existed have been taken.
func (a *Accounts) Watch(ctx context.Context, informers cache.Informers, recorder events.EventRecorder) (synced func() bool, err error) {
	informer, err := informers.GetInformer(ctx, &corev1.Secret{}, cache.BlockUntilSynced(false))
	if err != nil {
		return nil, fmt.Errorf("watch credentials: %w", err)
	}
	take := func(obj any) {
		secret, ok := obj.(*corev1.Secret)
		if !ok {
			return
		}
		for _, c := range a.set(secret) {
			if c.private {
				logr.FromContextOrDiscard(ctx).Info("A Secret with credentials is not used", "secret", c.secret.String(), "detail", c.message)
				continue
			}
			regarding := &corev1.ObjectReference{APIVersion: "v1", Kind: "Secret", Namespace: c.secret.Namespace, Name: c.secret.Name, UID: c.uid}
			recorder.Eventf(regarding, nil, corev1.EventTypeWarning, c.reason, "ReadCredentials", "%s", c.message)
		}
	}
	registration, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    take,
		UpdateFunc: func(_, obj any) { take(obj) },
		DeleteFunc: func(obj any) {
			if gone, ok := obj.(toolscache.DeletedFinalStateUnknown); ok {
				obj = gone.Obj
			}
			if secret, ok := obj.(*corev1.Secret); ok {
				a.remove(types.NamespacedName{Namespace: secret.Namespace, Name: secret.Name})
			}
		},
	})
	if err != nil {
		return nil, fmt.Errorf("watch credentials: %w", err)
	}
	return registration.HasSynced, nil
}
